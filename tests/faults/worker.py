"""Runs the whole DAG of the demo on one store, stage by stage, without Prefect's server."""

import sys
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path

from pipeline.engine.dag import DAG
from pipeline.engine.materialize import Outcome, materialize
from pipeline.engine.runs import record_run
from pipeline.progress import ConsoleReporter
from pipeline.recipe.presets import preset
from pipeline.settings import Settings
from storage.store.artifacts import ArtifactStore
from tests.support.forks import become


def work(
    printed: Connection,
    errors: Path,
    folder: Path,
    variables: Mapping[str, str],
    store: str,
    rerun: Sequence[str],
    *changes: str,
) -> None:
    """Be a process of its own: own session, folder, environment and streams; then run.

    Args:
        printed: Takes standard output.
        errors: Takes standard error.
        folder: Where the project is.
        variables: The whole environment.
        store: The store.
        rerun: Stages to make again although they are fresh.
        changes: Recipe changes as `dotted.path=value`.
    """
    with errors.open("a") as stream:
        become(folder, variables, printed.fileno(), stream.fileno())
    printed.close()
    run(store, dict(change.split("=", 1) for change in changes), rerun)
    sys.stdout.flush()


def run(store_uri: str, changes: dict[str, object], rerun: Sequence[str]) -> None:
    """Make every stage as the flow does; prints `start`, then a line per stage."""
    print("start", flush=True)
    recipe = preset("demo").override(changes)
    settings = Settings(store=store_uri, wandb="disabled", device="cpu", threads=1)
    store = ArtifactStore(settings.store, settings.work / "cache")
    outcomes: dict[str, Outcome] = {}
    for stage in DAG:
        inputs = {name: outcomes[name].manifest for name in stage.inputs_with(recipe)}
        forced = stage.name in rerun
        outcome = materialize(
            stage, recipe, inputs, store, settings, ConsoleReporter(), force=forced
        )
        outcomes[stage.name] = outcome
        print(stage.name, outcome.status, f"{outcome.seconds:.2f}", flush=True)
    record_run(store, recipe, list(outcomes.values()))
