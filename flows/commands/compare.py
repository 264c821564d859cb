"""`phivision compare`: variants of one recipe, run through one store, and a table of their scores.

Stages whose recipe parts and inputs are the same are the same artifacts, so each is made once.
"""

import itertools
import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from flows.commands.options import changes_of
from flows.compare_table import markdown, measure
from flows.failures import explain
from flows.interrupts import was_asked_to_end
from flows.pages.saved import leave_report
from pipeline.errors import PipelineError
from pipeline.recipe.presets import preset as load_preset
from pipeline.settings import Settings
from storage.store.runs import LATEST, read_refs, write_ref

Changes = dict[str, object]


def compare_variants(
    preset: str,
    base: Mapping[str, object],
    grid: Sequence[str],
    variants: Sequence[str],
    settings: Settings,
    output: Path | None,
    report: Path | None,
    *,
    style: str,
) -> None:
    """Run every variant and print one table.

    Variants are not judged for publication: the published and the latest run stay what they were.

    Args:
        preset: The recipe to start from.
        base: Changes that all variants have.
        grid: `dotted.path=v1,v2`; several are crossed.
        variants: `name: dotted.path=value …`.
        settings: Where and how to run.
        output: File to write to as well.
        report: File for the report of the first variant beside the others.
        style: `markdown` or `json`.

    Raises:
        PipelineError: There is nothing to compare, or a variant failed; the table has the others.
    """
    chosen = {**read_variants(variants), **read_grid(grid)}
    if len(chosen) < 2:
        raise PipelineError(
            f"{len(chosen)} variants cannot be compared",
            "give --grid dotted.path=v1,v2 or --variant 'name: dotted.path=value' twice",
        )
    for changes in chosen.values():  # all are checked before any work
        load_preset(preset).override({**base, **changes})
    runs, failures = _run_all(preset, base, chosen, settings)
    if runs:
        _show(runs, chosen, settings, output, style)
        _draw(runs, settings, report)
    if failures:
        raise PipelineError(
            f"{len(failures)} of {len(chosen)} variants failed: {', '.join(failures)}",
            "their messages are above; run again to continue where they stopped",
        )


def _draw(runs: Mapping[str, str], settings: Settings, report: Path | None) -> None:
    """Draw the report of the first run beside the others, if there is a file for it."""
    (_, first), *others = runs.items()
    if report is not None:
        place = leave_report(settings.open_store(), first, output=report, others=dict(others))
        print(f"report: {place}", file=sys.stderr)  # stdout may be JSON


def _show(
    runs: Mapping[str, str],
    chosen: Mapping[str, Changes],
    settings: Settings,
    output: Path | None,
    style: str,
) -> None:
    store = settings.open_store()
    first = next(iter(runs.values()))
    rows = [measure(store, name, chosen[name], run, first) for name, run in runs.items()]
    text = json.dumps(rows, indent=1) + "\n" if style == "json" else markdown(rows)
    print(text, end="")
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(text, encoding="utf-8")


def read_variants(texts: Sequence[str]) -> dict[str, Changes]:
    """Return changes by variant, from `name: path=value path=value`; a name alone changes nothing.

    Raises:
        PipelineError: A text has no name, or two have the same.
    """
    variants: dict[str, Changes] = {}
    for text in texts:
        name, colon, rest = text.partition(":")
        name = name.strip()
        if not colon or not name or "=" in name or name in variants:
            raise PipelineError(
                f"--variant '{text}' has no name of its own",
                "write --variant 'name: dotted.path=value dotted.path=value'",
            )
        variants[name] = changes_of(shlex.split(rest))
    return variants


def read_grid(texts: Sequence[str]) -> dict[str, Changes]:
    """Return changes by variant, one for each combination of values.

    Values are separated by commas, or are a JSON list.

    Raises:
        PipelineError: A text is not an assignment of values, or two are about one field.
    """
    axes: list[list[tuple[str, object]]] = []
    for text in texts:
        path, equals, values = text.partition("=")
        if not equals or not values.strip():
            raise PipelineError(f"--grid {text} names no values", "write --grid dotted.path=v1,v2")
        axes.append([(path.strip(), value) for value in _values(values.strip())])
    names = _short_names([axis[0][0] for axis in axes])
    combined = itertools.product(*axes) if axes else ()
    return {
        ", ".join(f"{names[path]}={_shown(value)}" for path, value in point): dict(point)
        for point in combined
    }


def _values(text: str) -> list[object]:
    if text.startswith("["):
        try:
            return list(json.loads(text))
        except ValueError:
            raise PipelineError(f"'{text}' is not a JSON list", 'write ["a", "b"] or a,b') from None
    return [value.strip() for value in text.split(",")]


def _shown(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _short_names(paths: Sequence[str]) -> dict[str, str]:
    """Return by path its last part, or as many parts as distinguish it from the other paths."""
    if len(set(paths)) < len(paths):
        twice = next(path for path in paths if paths.count(path) > 1)
        raise PipelineError(f"--grid names {twice} twice", f"write --grid {twice}=v1,v2,v3")
    names = {}
    for path in paths:
        parts = path.split(".")
        ends = [".".join(parts[at:]) for at in range(len(parts) - 1, -1, -1)]
        others = [f".{other}" for other in paths if other != path]
        alone = (end for end in ends if not any(other.endswith(f".{end}") for other in others))
        names[path] = next(alone, path)
    return names


def _run_all(
    preset: str, base: Mapping[str, object], chosen: Mapping[str, Changes], settings: Settings
) -> tuple[dict[str, str], list[str]]:
    """Return the runs by variant, and the variants that failed."""
    from flows.commands.run import run_pipeline

    store = settings.open_store()
    latest = read_refs(store).get(LATEST)
    unjudged = settings.model_copy(update={"judge": False})
    runs: dict[str, str] = {}
    failures = []
    try:
        for name, changes in chosen.items():
            print(f"── {name}", flush=True)
            try:
                runs[name] = run_pipeline(preset, {**base, **changes}, unjudged, [])
            except Exception as error:
                message = explain(error)
                if message is None or was_asked_to_end(error):
                    raise
                print(message)
                failures.append(name)
    finally:
        if latest is not None:
            write_ref(store, LATEST, latest)
    return runs, failures
