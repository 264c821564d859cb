"""The one task of every flow: it materializes a stage; a stage made before is *Cached*."""

from collections.abc import Mapping, Sequence
from typing import Any

from prefect import Task, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.runtime import deployment
from prefect.states import Completed

from flows.failures import may_pass
from flows.lineage import lineage
from flows.notifications import tell_decision
from flows.runner.fan_out import fan_out
from flows.runner.report_attach import attach_report
from flows.runner.reporter import PrefectReporter
from flows.runner.ui_artifacts import (
    CACHED,
    COMPLETED,
    NOT_PUBLISHED,
    describe,
    show_run,
    show_stage,
    state_line,
    summary_line,
)
from pipeline.engine.dag import BY_NAME, DAG
from pipeline.engine.materialize import Outcome, materialize
from pipeline.engine.run_status import note_begin, note_end
from pipeline.engine.runs import record_run
from pipeline.interpreter import leave_quickly
from pipeline.publishing.gate import decide, status_line
from pipeline.recipe.recipe import Recipe
from pipeline.settings import Settings
from storage.store.artifacts import ArtifactStore
from storage.store.manifest import Manifest


def make_stages(
    recipe: Recipe, settings: Settings, store: ArtifactStore, rerun: Sequence[str]
) -> State:
    """Make every stage in the order of the DAG and return the flow's state.

    Its data is the name of the run and what the gate decided, None where it was not asked.

    Raises:
        PipelineError: A stage cannot go on for a reason its user can fix.
        StorageError: The store cannot be read or written.
    """
    if deployment.id:  # a worker started this process for the run alone
        leave_quickly()
    every = _make_all(recipe, settings, store, rerun)
    run = record_run(store, recipe, every)
    decision = decide(store, recipe, run, settings, tell_decision)
    get_run_logger().info(status_line(decision))
    show_run(run, recipe, store, every)
    attach_report(store, settings, run)
    changed = [outcome.stage for outcome in every if outcome.status == "made"]
    label = COMPLETED if changed else CACHED
    label = NOT_PUBLISHED if decision is not None and decision.action == "refused" else label
    message = f"{summary_line(run, changed, every)}; {status_line(decision)}"
    return Completed(name=label, message=message, data=(run, decision))


def _make_all(
    recipe: Recipe, settings: Settings, store: ArtifactStore, rerun: Sequence[str]
) -> list[Outcome]:
    """Return the outcome of every stage, in the order of the DAG."""
    outcomes: dict[str, Outcome] = {}
    states: dict[str, State] = {}
    with lineage(store.uri) as events:
        for stage in DAG:
            inputs = {name: outcomes[name].manifest for name in stage.inputs_with(recipe)}
            note_begin(stage.name)
            with events.stage(stage.name, inputs) as report_artifact:
                state = run_stage.with_options(
                    name=stage.name,
                    task_run_name=stage.name,
                    retries=2 if stage.network else 0,
                    retry_delay_seconds=[2, 20],
                )(
                    stage.name,
                    recipe.model_dump(mode="json"),
                    {name: each.model_dump(mode="json") for name, each in inputs.items()},
                    settings.model_dump(mode="json"),
                    force=stage.name in rerun,
                    wait_for=[states[name] for name in inputs],  # draws the DAG in the UI
                    return_state=True,
                )
                states[stage.name] = state
                outcomes[stage.name] = _outcome(state)
                report_artifact(outcomes[stage.name].manifest)
    return list(outcomes.values())


def _worth_a_retry(task: Task, run: TaskRun, state: State) -> bool:
    del task
    error = state.result(raise_on_failure=False)
    if not may_pass(error):
        return False
    print(f"{run.name}: {str(error).splitlines()[0]}: trying again", flush=True)
    return True


@task(cache_policy=NO_CACHE, persist_result=False, retry_condition_fn=_worth_a_retry)
def run_stage(
    name: str,
    recipe: Mapping[str, Any],
    inputs: Mapping[str, Any],
    settings: Mapping[str, Any],
    *,
    force: bool,
) -> State:
    """Materialize one stage; the state is named `Cached` where there was nothing to do."""
    chosen = Settings.model_validate(settings)
    outcome = materialize(
        BY_NAME[name],
        Recipe.model_validate(recipe),
        {key: Manifest.model_validate(value) for key, value in inputs.items()},
        chosen.open_store(),
        chosen,
        PrefectReporter(name),
        force=force,
        fan_out=fan_out(chosen.task_runner),
    )
    get_run_logger().info(describe(outcome))
    show_stage(outcome)
    data = {
        "status": outcome.status,
        "seconds": outcome.seconds,
        "manifest": outcome.manifest.model_dump(mode="json"),
    }
    label = CACHED if outcome.status == "cached" else COMPLETED
    return Completed(name=label, message=state_line(outcome), data=data)


def _outcome(state: State) -> Outcome:
    data = state.result()
    manifest = Manifest.model_validate(data["manifest"])
    outcome = Outcome(manifest.stage, data["status"], manifest, data["seconds"])
    note_end(outcome.stage, outcome.status, outcome.seconds)
    print(describe(outcome), flush=True)
    return outcome
