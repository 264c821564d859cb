"""The flow `full-pipeline`: one Prefect task run per stage.

Prefect orchestrates and shows the run. The store's manifests, never Prefect's cache, decide
what is fresh, so a stage that was already made shows as *Cached*.
"""

import sys
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from runpy import run_module
from typing import Any

from prefect import flow, get_run_logger
from prefect.client.schemas.objects import State
from prefect.runtime import deployment, flow_run

from flows.notifications import notifying, watching_disks
from flows.run_signal import status_on_signal
from flows.runner.parameters import Overrides, Preset, SettingValues, StageName
from flows.runner.stage_task import make_stages
from flows.runner.ui_artifacts import run_title, show_plan
from pipeline.costs.stage_seconds import forecast
from pipeline.engine.plan import Step, plan
from pipeline.engine.run_status import RunStatus, showing
from pipeline.errors import PipelineError
from pipeline.recipe.presets import preset as load_preset
from pipeline.recipe.recipe import Recipe
from pipeline.settings import Settings
from storage.store.leases import presence


def name_of_run() -> str:
    """Return the name of the flow run that is about to start."""
    return run_title(flow_run.parameters)


# The recipe checks its overrides better than Prefect could: it names the nearest valid field.
# A deployment's server checks the values of known fields before there is a run.
@flow(
    name="full-pipeline",
    flow_run_name=name_of_run,
    validate_parameters=False,
    persist_result=False,
)
def full_pipeline(
    preset: Preset = "demo",
    # Nothing changes these. With None the server's form would say `Property is type "None"`. It is
    # drawn in this order, and shows all fields of the recipe.
    rerun: list[StageName] = [],  # noqa: B006
    settings: SettingValues = {},  # noqa: B006
    overrides: Overrides = {},  # noqa: B006
) -> State:
    """Make everything a recipe asks for; the result is the run's name and the gate's decision.

    Args:
        preset: Complete recipe to start from.
        rerun: Stages to make again although they are fresh.
        settings: Where and how to run; the rest comes from `PHIVISION_…` variables.
        overrides: Recipe fields to change, by dotted path.
    """
    with notifying(f"preset {preset}"):
        return _run(load_preset(preset).override(overrides), preset, run_settings(settings), rerun)


def _run(recipe: Recipe, preset: str, chosen: Settings, rerun: Sequence[str]) -> State:
    store = chosen.open_store()
    steps = plan(recipe, store, rerun)
    explain_plan(steps)
    tunes = any(step.stage == "finetune" and step.status != "fresh" for step in steps)
    if tunes and recipe.finetune.quantize != "none":
        from pipeline.engine.devices import check_quantization  # imports torch

        check_quantization(chosen)  # before hours of other work
    expected = forecast(recipe, store, steps, chosen).seconds
    status = RunStatus(chosen.work, store.uri, preset, expected)
    with (
        presence(store, chosen.work / "locks"),
        showing(status),
        status_on_signal(status),
        watching_disks(chosen),
    ):
        return make_stages(recipe, chosen, store, rerun)


def run_settings(values: Mapping[str, Any]) -> Settings:
    """Return the settings of a run.

    Raises:
        PipelineError: There is no such setting, or a worker would look for the store in the
            temporary folder it starts runs in.
    """
    known = list(Settings.model_fields)
    for name in (name for name in values if name not in known):
        near = get_close_matches(name, known, n=1, cutoff=0)[0]
        raise PipelineError(f"there is no setting '{name}'", f"did you mean {near}?")
    chosen = Settings(**values)
    if deployment.id and not chosen.work.is_absolute():
        raise PipelineError(
            f"the store '{chosen.store}' is a relative path, and a worker starts each run in a "
            "temporary folder",
            "start the worker with PHIVISION_STORE set to an absolute path or a URL",
        )
    return chosen


def explain_plan(steps: list[Step]) -> None:
    """Show the plan in the log and as a table."""
    logger = get_run_logger()
    for step in steps:
        logger.info(f"{step.stage}: {step.status}{', ' if step.reason else ''}{step.reason}")
    show_plan(steps)


if __name__ == "__main__":
    sys.argv[1:1] = ["run"]
    run_module("flows.cli", run_name="__main__")  # the command line imports this flow
