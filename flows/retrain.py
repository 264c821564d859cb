"""The flow `retrain`: check the sources again, and run only what something new makes stale.

A stage's fingerprint holds the state of its outside source (a folder's listing; size and ETag of a
URL), so new images make `images` stale, and everything after it runs as far as its inputs differ.
"""

from prefect import flow, get_run_logger
from prefect.client.schemas.objects import State
from prefect.states import Completed

from flows.full_pipeline import explain_plan, name_of_run, run_settings
from flows.notifications import notifying, tell_decision, watching_disks
from flows.pages.saved import find_report
from flows.runner.parameters import Overrides, Preset, SettingValues
from flows.runner.report_attach import attach_report
from flows.runner.stage_task import make_stages
from flows.runner.ui_artifacts import NOTHING_NEW
from pipeline.engine.plan import cached_outcomes, plan
from pipeline.engine.runs import record_run
from pipeline.publishing.gate import decide, status_line
from pipeline.recipe.presets import preset as load_preset
from pipeline.recipe.recipe import Recipe
from pipeline.settings import Settings
from storage.store.leases import presence


@flow(name="retrain", flow_run_name=name_of_run, validate_parameters=False, persist_result=False)
def retrain(
    preset: Preset = "demo",
    settings: SettingValues = {},  # noqa: B006
    overrides: Overrides = {},  # noqa: B006
) -> State:
    """Make what new sources, code or recipe ask for; with nothing new, no stage is started.

    Args:
        preset: Complete recipe to start from.
        settings: Where and how to run; the rest comes from `PHIVISION_…` variables.
        overrides: Recipe fields to change, by dotted path.
    """
    with notifying(f"retrain with preset {preset}"):
        return _run(load_preset(preset).override(overrides), run_settings(settings))


def _run(recipe: Recipe, chosen: Settings) -> State:
    store = chosen.open_store()
    steps = plan(recipe, store)
    explain_plan(steps)
    outcomes = cached_outcomes(steps)
    if outcomes is not None:
        # The run that made them may have died before it was recorded and judged.
        run = record_run(store, recipe, outcomes)
        decision = decide(store, recipe, run, chosen, tell_decision)
        message = (
            f"nothing new: sources, recipe and code are as they were, {store.uri} is up to date; "
            f"{status_line(decision)}"
        )
        get_run_logger().info(message)
        if find_report(store, run) is None:
            attach_report(store, chosen, run)
        return Completed(name=NOTHING_NEW, message=message)
    with presence(store, chosen.work / "locks"), watching_disks(chosen):
        return make_stages(recipe, chosen, store, ())
