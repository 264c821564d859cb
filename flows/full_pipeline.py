"""The flow `full-pipeline`: one Prefect task run per stage, and nothing else of the DAG.

Prefect is the orchestrator and the window. What is fresh is asked of the store's manifests, never
of Prefect's cache, so a stage that was already there shows as *Cached*.
"""

import os
import sys
from collections.abc import Sequence
from typing import Any

# Read by Prefect when it is imported: the first start migrates a database, which takes longer
# than Prefect's own limit on a small machine; nothing is reported to anyone.
os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "180")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "ERROR")

from prefect import Task, flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.states import Completed

from pipeline.dag import BY_NAME, DAG
from pipeline.errors import PipelineError
from pipeline.materialize import Outcome, materialize
from pipeline.plan import check_stages
from pipeline.presets import preset as load_preset
from pipeline.progress import ConsoleReporter
from pipeline.recipe import Recipe
from pipeline.runs import record_run
from pipeline.settings import Settings
from storage.artifacts import ArtifactStore
from storage.manifest import Manifest

FIGURES = 5  # shown on a stage's line; the Prefect artifact has all


@flow(name="full-pipeline", validate_parameters=True, persist_result=False)
def full_pipeline(
    preset: str = "demo",
    overrides: dict[str, Any] | None = None,
    rerun: list[str] | None = None,
    settings: dict[str, Any] | None = None,
) -> str:
    """Make everything a recipe asks for and return the name of the run.

    Args:
        preset: `demo` or `coco`.
        overrides: Values by dotted path of the recipe.
        rerun: Stages to make again although they are fresh.
        settings: Where and how to run; the rest comes from `PHIVISION_…` variables.
    """
    recipe = load_preset(preset).override(overrides or {})
    chosen = Settings(**(settings or {}))
    check_stages(rerun or ())
    store = ArtifactStore(chosen.store, chosen.work / "cache", chosen.cache_bytes)
    outcomes: dict[str, Outcome] = {}
    for stage in DAG:
        inputs = {name: outcomes[name].manifest for name in stage.inputs_with(recipe)}
        state = run_stage.with_options(
            name=stage.name,
            task_run_name=stage.name,
            retries=2 if stage.network else 0,
            retry_delay_seconds=[2, 20],
        )(
            stage.name,
            recipe.model_dump(mode="json"),
            {name: manifest.model_dump(mode="json") for name, manifest in inputs.items()},
            chosen.model_dump(mode="json"),
            force=stage.name in (rerun or ()),
            return_state=True,
        )
        outcomes[stage.name] = _outcome(state)
    run = record_run(store, recipe, list(outcomes.values()))
    _show_run(run, list(outcomes.values()))
    return run


def _worth_a_retry(task: Task, run: TaskRun, state: State) -> bool:
    """Retry what may pass, such as a broken connection, but not what a person must mend."""
    del task, run
    error = state.result(raise_on_failure=False)
    return isinstance(error, BaseException) and not isinstance(error, PipelineError)


@task(cache_policy=NO_CACHE, persist_result=False, retry_condition_fn=_worth_a_retry)
def run_stage(
    name: str,
    recipe: dict[str, Any],
    inputs: dict[str, Any],
    settings: dict[str, Any],
    *,
    force: bool,
) -> State:
    """Materialize one stage; the state is named `Cached` where there was nothing to do."""
    chosen = Settings.model_validate(settings)
    outcome = materialize(
        BY_NAME[name],
        Recipe.model_validate(recipe),
        {key: Manifest.model_validate(value) for key, value in inputs.items()},
        ArtifactStore(chosen.store, chosen.work / "cache", chosen.cache_bytes),
        chosen,
        ConsoleReporter(),
        force=force,
    )
    line = f"{describe(outcome)}"
    get_run_logger().info(line)
    create_markdown_artifact(_stage_markdown(outcome), key=f"stage-{name}", description=line)
    data = {
        "status": outcome.status,
        "seconds": outcome.seconds,
        "manifest": outcome.manifest.model_dump(mode="json"),
    }
    label = "Cached" if outcome.status == "cached" else "Completed"
    return Completed(name=label, message=line, data=data)


def describe(outcome: Outcome) -> str:
    """Return one line about a stage: name, status, seconds and its figures."""
    scalars = [(k, v) for k, v in outcome.manifest.summary.items() if not isinstance(v, dict)]
    figures = "  ".join(f"{key}={value}" for key, value in scalars[:FIGURES])
    return f"{outcome.stage:<13} {outcome.status:<7} {outcome.seconds:7.1f} s  {figures}"


def _outcome(state: State) -> Outcome:
    data = state.result()
    manifest = Manifest.model_validate(data["manifest"])
    outcome = Outcome(manifest.stage, data["status"], manifest, data["seconds"])
    print(describe(outcome), flush=True)
    return outcome


def _stage_markdown(outcome: Outcome) -> str:
    manifest = outcome.manifest
    figures = "\n".join(f"| {key} | {value} |" for key, value in manifest.summary.items())
    size = sum(record.bytes for record in manifest.files) / 1e6
    return (
        f"# {outcome.stage}: {outcome.status}\n\n| figure | value |\n|---|---|\n{figures}\n\n"
        f"{len(manifest.files)} files, {size:.1f} MB, made in {manifest.seconds:.1f} s\n\n"
        f"fingerprint `{manifest.fingerprint[:16]}`, digest `{manifest.digest[:16]}`"
    )


def _show_run(run: str, outcomes: Sequence[Outcome]) -> None:
    rows = [
        {"stage": o.stage, "status": o.status, "seconds": round(o.seconds, 1)}
        | {"digest": o.manifest.digest[:16]}
        for o in outcomes
    ]
    create_table_artifact(rows, key="run", description=f"Run {run}")


if __name__ == "__main__":
    from flows.cli import main

    main(["run", *sys.argv[1:]])
