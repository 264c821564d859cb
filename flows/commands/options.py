"""Options that many commands share, and the recipe, settings and store made from them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter, validators

from pipeline.errors import PipelineError

if TYPE_CHECKING:
    from pipeline.catalog.catalog import Catalog
    from pipeline.recipe.recipe import Recipe
    from pipeline.settings import Settings
    from storage.store.artifacts import ArtifactStore

Preset = Annotated[
    str | None,
    Parameter(help="Complete recipe to start from: demo (the default), photos, small or coco."),
]
RecipeFile = Annotated[
    Path | None,
    Parameter(name="--recipe", help="YAML file: a recipe, or what differs from its preset."),
]
Data = Annotated[
    str | None,
    Parameter(name="--data", help="Captioned images of your own: a table, a folder or an archive."),
]
Start = Annotated[
    str | None,
    Parameter(
        name="--start",
        help="Go on training from an assistant: a run, a bundle's folder or URL, or hf://owner/name.",
    ),
]
Set = Annotated[
    list[str] | None,
    Parameter(name="--set", help="Change one recipe field: dotted.path=value.", negative=()),
]
EveryMetric = Annotated[
    bool, Parameter(name="--all", negative=(), help="All metrics, not just the main ones.")
]
Every = Annotated[bool, Parameter(name="--all", negative=(), help="Every stage that is not fresh.")]
OnlyList = Annotated[
    bool, Parameter(name="--list", negative=(), help="Only print what was published, and why.")
]
Store = Annotated[str | None, Parameter(help="Path or fsspec URL of the artifact store.")]
Run = Annotated[
    str | None,
    Parameter(help="A run instead of the latest one: its name, the start of it, or its tag."),
]
Rerun = Annotated[
    list[str] | None, Parameter(help="Make this stage again although it is fresh.", negative=())
]

# A query may begin with a comment, which looks like an option.
Query = Annotated[
    str | None, Parameter(allow_leading_hyphen=True, validator=lambda _, text: _refuse_option(text))
]
Count = Annotated[int, Parameter(validator=validators.Number(gte=0))]
Days = Annotated[float, Parameter(validator=validators.Number(gte=0))]


def _refuse_option(text: str | None) -> None:
    """Refuse an option that was mistyped: a comment of one line is not a query.

    Raises:
        ValueError: It begins with a hyphen and has one line.
    """
    if text is not None and text.startswith("-") and "\n" not in text.strip():
        raise ValueError(f"Unknown option {text}.")


def changes_of(assignments: Sequence[str] | None) -> dict[str, object]:
    """Return recipe changes by dotted path.

    Raises:
        PipelineError: One of them is not an assignment.
    """
    changes: dict[str, object] = {}
    for assignment in assignments or ():
        path, separator, value = assignment.partition("=")
        if not separator:
            raise PipelineError(
                f"--set {assignment} is not an assignment", "write --set dotted.path=value"
            )
        changes[path.strip()] = value
    return changes


def preset_and_changes(
    preset: str | None,
    file: Path | None,
    assignments: Sequence[str] | None,
    data: str | None = None,
    start: str | None = None,
    store: str | None = None,
) -> tuple[str, dict[str, object]]:
    """Return the preset's name, and the changes of a bundle, data, a file and `--set`, in order.

    The store is where `start` may name a run.

    How the data was interpreted is printed on standard error.

    Raises:
        PipelineError: File and command line name different presets, or a change is no assignment.
    """
    named, changes = None, {}
    if file is not None:
        from pipeline.recipe.recipe_file import read_recipe_file

        named, changes = read_recipe_file(file)
    if preset and named and preset != named:
        raise PipelineError(
            f"{file} starts from the preset {named}, and --preset says {preset}", "leave one out"
        )
    guessed: dict[str, object] = {}
    if start is not None:
        from flows.commands.bundle_place import start_address
        from pipeline.training.start import fields_of_bundle

        guessed |= fields_of_bundle(start_address(settings_of(store), start))
    if data is not None:
        guessed |= _guessed(data)
    return preset or named or "demo", {**guessed, **changes, **changes_of(assignments)}


def _guessed(data: str) -> Mapping[str, object]:
    from rich.console import Console

    from flows.printing import table_of
    from pipeline.data.guess import guess_data

    guess = guess_data(data)
    console = Console(stderr=True, soft_wrap=False)
    console.print(f"{data}: {guess.what}", markup=False, highlight=False)
    if guess.rows:
        console.print(table_of(guess.columns, guess.rows))
    console.print(table_of(["field", "value"], [[f, v] for f, v in guess.changes.items()]))
    return guess.changes


def recipe_of(
    preset: str | None,
    assignments: Sequence[str] | None,
    file: Path | None = None,
    data: str | None = None,
    start: str | None = None,
    store: str | None = None,
) -> "Recipe":
    """Return a preset with the changes of a bundle, of data, of a file and of `--set` applied."""
    from pipeline.recipe.presets import preset as load_preset

    name, changes = preset_and_changes(preset, file, assignments, data, start, store)
    return load_preset(name).override(changes)


def settings_of(store: str | None, **values: Any) -> "Settings":
    """Return the settings of the environment, with what was given on the command line."""
    from pipeline.settings import Settings

    given = {key: value for key, value in values.items() if value is not None}
    given |= {} if store is None else {"store": store}
    return Settings.model_validate(Settings().model_dump() | given)


def open_own_store(settings: "Settings") -> "ArtifactStore":
    """Return the artifact store of the settings, for a command that removes or replaces files.

    Raises:
        StorageError: The place is not a phivision store.
    """
    from storage.store.mark import require_store

    store = settings.open_store()
    require_store(store.files)
    return store


def open_catalog(store: str | None, run: str | None = None) -> "Catalog":
    """Return the catalog of a store, of the latest run or of one by its name, its start or tag.

    Raises:
        PipelineError: No run has this name, or several do.
    """
    from pipeline.catalog.catalog import Catalog
    from pipeline.engine.runs import find_run

    place = settings_of(store).open_store()
    return Catalog(place, None if run is None else find_run(place, run)["run"])
