"""The command line: quick to start, because each command imports only what it needs."""

import os
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from cyclopts import App, CycloptsError

from flows.commands.bundle_commands import ask, caption, chat, export, pull, serve
from flows.commands.looking_commands import LOOKING
from flows.commands.options import (
    Count,
    Data,
    Days,
    Every,
    EveryMetric,
    OnlyList,
    Preset,
    Query,
    RecipeFile,
    Rerun,
    Run,
    Set,
    Start,
    Store,
)
from flows.commands.options import open_catalog as _catalog
from flows.commands.options import open_own_store as _open_own
from flows.commands.options import preset_and_changes as _preset_and_changes
from flows.commands.options import recipe_of as _recipe
from flows.commands.options import settings_of as _settings
from flows.interrupts import end_on_request
from flows.surroundings import print_anything, spare_loopback
from pipeline.interpreter import child_environment, leave_quickly

STOPPED = "stopped; finished work is kept, run again to go on"

app = App(
    name="phivision",
    help="Build your own small vision-language assistant, and re-run it like make.",
    version=partial(version, "phivision"),
    version_flags=["--version"],
    suppress_keyboard_interrupt=False,  # `main` says that finished work is kept
)


@app.command
def run(
    *,
    preset: Preset = None,
    recipe: RecipeFile = None,
    data: Data = None,
    start: Start = None,
    set_: Set = None,
    store: Store = None,
    rerun: Rerun = None,
    device: Literal["auto", "cpu", "cuda"] | None = None,
    threads: int | None = None,
    wandb: Literal["offline", "online", "disabled"] | None = None,
    publish_anyway: bool | None = None,
) -> None:
    """Run the DAG: only stages whose recipe, code or inputs changed do any work.

    Args:
        device: Device of the encoder and of training; auto unless PHIVISION_DEVICE says otherwise.
        threads: CPU threads; all cores if omitted.
        wandb: Mode of Weights & Biases; offline unless PHIVISION_WANDB says otherwise.
        publish_anyway: Publish whatever the gate says; it is recorded.
    """
    from flows.commands.run import run_pipeline

    settings = _settings(
        store, device=device, threads=threads, wandb=wandb, publish_anyway=publish_anyway
    )
    named = _preset_and_changes(preset, recipe, set_, data, start, store)
    run_pipeline(*named, settings, rerun or [])


@app.command
def plan(
    *,
    preset: Preset = None,
    recipe: RecipeFile = None,
    data: Data = None,
    start: Start = None,
    set_: Set = None,
    store: Store = None,
    rerun: Rerun = None,
    hardware: str | None = None,
    peak: float | None = None,
    mfu: float = 0.4,
    export: Literal["llava", "gguf"] | None = None,
    format: Literal["table", "json", "mermaid"] = "table",  # noqa: A002 - the option's name
) -> None:
    """Say which stages would run, why, and how long they will take; nothing runs.

    Args:
        hardware: Print instead the memory and time that training takes on a GPU: H100, 80GB, …
            In a graph, add the GPU hours.
        peak: Its peak in TFLOP/s of bf16, instead of the known one.
        mfu: Share of the peak that training is assumed to reach.
        export: Print instead whether the trained model could be exported in this format.
        format: A table for people, JSON for programs, or a graph in Mermaid, with what fresh stages
            took in seconds and bytes, and what others will take.
    """
    chosen, hours = _recipe(preset, set_, recipe, data, start, store), None
    if hardware is not None:
        from flows.commands.hardware import gpu_hours, print_hardware

        if format != "mermaid":
            print_hardware(chosen, hardware, peak, mfu, format)
            return
        hours = gpu_hours(chosen, hardware, peak, mfu)
    if export is not None:
        from pipeline.publishing.export_obstacles import plan_line

        print(plan_line(chosen, export))
        return
    from flows.commands.plan import print_plan

    print_plan(chosen, _settings(store), rerun or (), format, hours)


@app.command
def sql(
    query: Query = None,
    /,
    *,
    store: Store = None,
    run: Run = None,
    format: Literal["table", "csv", "json", "parquet"] = "table",  # noqa: A002
    output: Path | None = None,
) -> None:
    """Query the catalog, read-only; without a query, start a shell.

    Args:
        query: One SELECT, DESCRIBE, SUMMARIZE, SHOW or EXPLAIN.
        format: How the result is printed; parquet needs --output.
        output: File to write to instead of the screen.
    """
    from flows.commands.sql import query_once
    from flows.commands.sql_shell import Shell

    catalog = _catalog(store, run)
    if query is None:
        Shell(catalog).loop()
    else:
        query_once(catalog, query, format, output)


@app.command
def show(image_id: int | None = None, /, *, store: Store = None) -> None:
    """Follow one image through the DAG, from its file to the answers about it.

    Args:
        image_id: COCO id of the image; one that was held out if omitted.
    """
    from flows.commands.show import show_image

    show_image(_catalog(store), image_id)


@app.command
def scores(
    *, store: Store = None, run: Run = None, every: EveryMetric = False, java: bool = False
) -> None:
    """Print a run's held-out scores: with real, shuffled and blind images, and of baselines.

    Args:
        java: METEOR and SPICE of its captions instead; needs Java and phivision[java-metrics].
    """
    from flows.commands.java_scores import print_java_scores
    from flows.commands.scores import print_scores

    catalog = _catalog(store, run)
    if java:
        print_java_scores(catalog)
    else:
        print_scores(catalog, every=every)


@app.command
def tag(name: str, run: str = "latest", /, *, store: Store = None) -> None:
    """Give a run a name of its own; `gc` keeps what it reaches.

    Args:
        name: The tag.
        run: The run; the latest one if omitted.
    """
    from flows.commands.store_commands import tag_run

    tag_run(_open_own(_settings(store)), name, run)


@app.command
def rollback(*, store: Store = None, list_: OnlyList = False) -> None:
    """Publish again the assistant that was published before."""
    from flows.commands.store_commands import print_published
    from pipeline.publishing.gate import roll_back, status_line

    if list_:
        print_published(_settings(store).open_store())
        return
    print(status_line(roll_back(_open_own(_settings(store)))))


@app.command
def accept(
    stage: str = "",
    /,
    *,
    every: Every = False,
    preset: Preset = None,
    recipe: RecipeFile = None,
    set_: Set = None,
    store: Store = None,
    made_as: str = "",
) -> None:
    """Keep a stage's artifact after a refactor that changed code but no result.

    Args:
        stage: The stage.
        made_as: Start of the fingerprint of the artifact to adopt, whatever else changed.
    """
    from flows.commands.store_commands import accept_stages

    accept_stages(
        stage, _recipe(preset, set_, recipe), _open_own(_settings(store)), made_as, every=every
    )


@app.command
def verify(*, store: Store = None) -> None:
    """Hash every file of a store; `run` then remakes only what is damaged."""
    from flows.commands.store_commands import verify_store

    verify_store(_settings(store).open_store())


@app.command
def gc(
    *,
    store: Store = None,
    keep: Count = 5,
    days: Days = 7,
    downloads: bool = False,
    dry_run: bool = False,
) -> None:
    """Remove what no recent run, tag or published assistant reaches.

    Args:
        keep: Newest runs whose artifacts stay.
        days: Whatever was made or used within this many days stays.
        downloads: Also remove fetched archives and images; what is needed again is fetched again.
        dry_run: Only print what would be removed.
    """
    from flows.commands.store_commands import collect_garbage

    settings = _settings(store)
    collect_garbage(_open_own(settings), settings, keep, days, dry_run=dry_run, downloads=downloads)


for command in (ask, caption, chat, serve, export, pull, *LOOKING):
    app.command(command)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command; an expected error is one clear line and exit status 1 (2 for wrong usage)."""
    if arguments is None:  # this process runs only this command
        leave_quickly()
        end_on_request()
        print_anything()
        os.environ |= child_environment()  # Dask and others start more processes
    spare_loopback()
    tokens = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in tokens
    tokens = [token for token in tokens if token != "--debug"]  # noqa: S105
    with _errors(debug=debug):
        app(tokens, exit_on_error=False, print_error=False, result_action="return_value")


@contextmanager
def _errors(*, debug: bool) -> Generator[None]:
    from flows.failures import explain
    from flows.interrupts import was_asked_to_end

    try:
        yield
    except CycloptsError as error:
        _fail(f"{error}\n  → phivision --help", 2)
    except KeyboardInterrupt:
        _fail(STOPPED, 130)
    except BrokenPipeError:
        sys.exit(0)
    except Exception as error:
        if was_asked_to_end(error):
            _fail(STOPPED, 130)
        text = explain(error)
        if debug or text is None:
            raise
        _fail(text, 1)


def _fail(text: str, status: int) -> None:
    print(f"phivision: {text}", file=sys.stderr)
    sys.exit(status)


if __name__ == "__main__":
    main()
