"""Commands for looking at recipes, datasets, runs and their differences."""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from flows.commands.options import (
    Count,
    Data,
    EveryMetric,
    Preset,
    RecipeFile,
    Run,
    Set,
    Start,
    Store,
    open_catalog,
    preset_and_changes,
    settings_of,
)

Many = Parameter(negative=())


def report(
    run: str = "latest",
    *,
    store: Store = None,
    output: Path | None = None,
    images: Count = 8,
    against: Annotated[list[str] | None, Many] = None,
) -> None:
    """Draw the report of a run: one HTML page that needs no network.

    Args:
        run: A run: its name, the start of it, or its tag.
        output: File to write instead of the page in the store.
        images: Images in each group of examples.
        against: Other runs, whose curves and scores are shown beside; the run before if omitted.
    """
    from flows.pages.saved import leave_report
    from pipeline.engine.runs import find_run

    place = settings_of(store).open_store()
    named = {name: find_run(place, name)["run"] for name in against or ()}
    main = find_run(place, run)["run"]
    print(leave_report(place, main, images, output, named if against else None))


def browse(
    *,
    store: Store = None,
    run: Run = None,
    output: Path | None = None,
    images: Count = 2000,
    drops: Count = 4,
) -> None:
    """Draw the dataset as one file: images to search and filter, what was left out, distributions.

    Args:
        output: File to write instead of the page in the store.
        images: Images that the file holds, some 5 to 6 kB each; `explore` takes any number.
        drops: Dropped records shown for each reason.
    """
    from flows.pages.saved import leave_browse

    print(leave_browse(open_catalog(store, run), images, drops, output))


def explore(*, store: Store = None, run: Run = None, port: int = 7861) -> None:
    """Look through the dataset and the predictions in a browser: search, filters, similar images.

    Args:
        port: Port on loopback; 0 takes a free one.
    """
    from flows.commands.ports import refuse_taken
    from flows.surroundings import LOOPBACK
    from flows.waiting import waiting
    from pipeline.interpreter import importing

    refuse_taken(LOOPBACK[0], port, "choose another port with --port; 0 takes a free one")
    with waiting("starting the explorer"), importing():  # the libraries alone take seconds
        from flows.explore.server import serve_explorer

    serve_explorer(open_catalog(store, run), settings_of(store), port)


def similar(image: str, /, *, store: Store = None, count: Count = 10) -> None:
    """Print the images nearest to one, by pooled embedding.

    Args:
        image: An image id of the store, or an image file.
        count: How many.
    """
    from flows.commands.similar import print_similar

    print_similar(open_catalog(store), image, count, settings_of(store))


def catalog(file: Path, /, *, store: Store = None, run: Run = None, copy: bool = False) -> None:
    """Write the catalog as a DuckDB file, for any DuckDB client.

    Args:
        file: The file, e.g. catalog.duckdb.
        copy: Copy all rows but images and embeddings, so that the file can leave this machine.
    """
    from pipeline.catalog.catalog_file import export_catalog

    names = export_catalog(open_catalog(store, run), file, copy=copy)
    print(f"{file}: {', '.join(names)}")


def compare(
    *,
    preset: Preset = None,
    recipe: RecipeFile = None,
    set_: Set = None,
    grid: Annotated[list[str] | None, Many] = None,
    variant: Annotated[list[str] | None, Many] = None,
    store: Store = None,
    output: Path | None = None,
    report: Path | None = None,
    format: Literal["markdown", "json"] = "markdown",  # noqa: A002 - the option's name
    device: Literal["auto", "cpu", "cuda"] | None = None,
    threads: int | None = None,
) -> None:
    """Run variants of a recipe, sharing what they have in common, and compare their scores.

    Args:
        grid: dotted.path=v1,v2 or a JSON list; several of them are crossed.
        variant: "name: dotted.path=value …"; others are compared to the first one that ran.
        output: File to write the table to as well.
        report: File for the report of the first variant, with the curves of the others beside.
        format: A table for people or JSON for programs.
        device: Device of the encoder and of training.
        threads: CPU threads; all cores if omitted.
    """
    from flows.commands.compare import compare_variants

    settings = settings_of(store, device=device, threads=threads)
    name, base = preset_and_changes(preset, recipe, set_)
    compare_variants(name, base, grid or [], variant or [], settings, output, report, style=format)


def recipe(
    *,
    preset: Preset = None,
    recipe: RecipeFile = None,
    data: Data = None,
    start: Start = None,
    set_: Set = None,
    store: Store = None,
    diff: Annotated[tuple[str, str] | None, Many] = None,
    format: Literal["table", "yaml", "json"] = "table",  # noqa: A002 - the option's name
) -> None:
    """Print every field of a recipe with its value and meaning.

    Args:
        diff: Two presets or recipe files; print in which fields they differ.
        format: A table for people, yaml for a file that --recipe reads, or json with what differs
            from the preset, for `overrides` of a deployment.
    """
    from flows.commands.recipe import print_difference, print_recipe

    if diff is not None:
        print_difference(*diff)
    else:
        print_recipe(*preset_and_changes(preset, recipe, set_, data, start, store), style=format)


def runs(
    *,
    sort: str = "",
    limit: int = 20,
    format: Literal["table", "json"] = "table",  # noqa: A002 - the option's name
    store: Store = None,
) -> None:
    """List the finished runs of a store: when, scores, what was decided; newest first.

    Args:
        sort: A metric, such as cider_d: the best run first.
        limit: Runs to list, at most.
        format: table, or json with all metrics of each run.
    """
    from flows.commands.runs import print_runs

    print_runs(settings_of(store).open_store(), format, sort, limit)


def diff(
    before: str,
    after: str = "latest",
    /,
    *,
    every: EveryMetric = False,
    store: Store = None,
) -> None:
    """Say in which recipe fields, digests and metrics two runs differ.

    Args:
        before: A run: its name, the start of it, or its tag.
        after: Another one.
        every: All figures of evaluation, not only the main ones with their intervals.
    """
    from flows.commands.runs import print_diff

    print_diff(settings_of(store).open_store(), before, after, every=every)


def watch(*, store: Store = None, once: Annotated[bool, Many] = False) -> None:
    """Follow a run that is at work on this machine: stages, progress, time left, memory.

    Args:
        once: Print it once.
    """
    from flows.commands.watch import watch_run

    watch_run(settings_of(store), once=once)


LOOKING = (recipe, watch, report, browse, explore, similar, catalog, compare, runs, diff)
