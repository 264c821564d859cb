"""`phivision run`: uses only the manifests where nothing is stale, else runs Prefect's flow."""

import os
import sys
from collections.abc import Mapping, Sequence

from flows.notifications import notifying, tell_decision
from flows.pages.saved import find_report, report_after_run
from pipeline.engine.materialize import Outcome
from pipeline.engine.plan import cached_outcomes, plan
from pipeline.engine.runs import record_run, run_name
from pipeline.errors import PipelineError
from pipeline.interpreter import importing
from pipeline.publishing.gate import decide, status_line
from pipeline.recipe.presets import preset as load_preset
from pipeline.recipe.recipe import Recipe
from pipeline.settings import Settings
from storage.errors import StorageError
from storage.store.artifacts import ArtifactStore
from storage.store.published import Entry, last_number

NOT_PUBLISHED = 3  # exit status of a run that made everything and may not publish it


def run_pipeline(
    preset: str, changes: Mapping[str, object], settings: Settings, rerun: Sequence[str]
) -> str:
    """Make what is stale, print one line per stage, and return the name of the run.

    Raises:
        PipelineError: Prefect's server does not answer, cannot start, or went away; or the address
            of the webhook is not valid.
        SystemExit: Everything was made, and the gate does not let it be published.
    """
    recipe = load_preset(preset).override(changes)
    with notifying(f"preset {preset}"):
        return _run(recipe, preset, changes, settings, rerun)


def _run(
    recipe: Recipe,
    preset: str,
    changes: Mapping[str, object],
    settings: Settings,
    rerun: Sequence[str],
) -> str:
    store = settings.open_store()
    steps = plan(recipe, store, rerun)
    outcomes = cached_outcomes(steps)
    if outcomes is not None:
        for step in steps:
            print(f"{step.stage:<13} cached      0.0 s  {step.reason}".rstrip())
        print("nothing to do: every stage is cached")
        return _nothing_to_do(recipe, store, outcomes, settings)
    finished = _run_flow(preset, changes, settings, rerun)
    return _conclude(store, *finished)


def _run_flow(
    preset: str, changes: Mapping[str, object], settings: Settings, rerun: Sequence[str]
) -> tuple[str, Entry | None]:
    """Run the flow, with its own server where none is named.

    Returns:
        The name of the run and what the gate decided, None where it was not asked.
    """
    own = "" if os.environ.get("PREFECT_API_URL") else " and its server"
    print(f"starting Prefect{own}: takes some seconds", file=sys.stderr, flush=True)
    with importing():
        from flows.runner.own_server import own_server

        server = own_server()  # starts while the rest is imported
        import httpx

        from flows.full_pipeline import full_pipeline
        from flows.runner.server_check import check_server

    if server is None:
        check_server()
    else:
        server.wait()
        server.watch()
    try:
        finished = full_pipeline(
            preset=preset,
            overrides=dict(changes),
            rerun=list(rerun),
            settings=settings.model_dump(mode="json"),
        )
    except httpx.TransportError as error:  # stages report the Hub's errors themselves
        cause = str(error) or type(error).__name__
        if server is not None:
            raise server.lost(cause) from None
        raise PipelineError(
            f"Prefect's server does not answer any more: {cause}",
            "check the server and run again, finished work is kept",
        ) from None
    except BaseException:
        if server is not None and server.death:  # this run was ended for that reason
            raise server.lost() from None
        raise
    assert isinstance(finished, tuple)  # the data of the flow's state, not the state
    return finished


def _nothing_to_do(
    recipe: Recipe, store: ArtifactStore, outcomes: Sequence[Outcome], settings: Settings
) -> str:
    """Record a run in which every stage is cached, and return its name."""
    try:
        before = last_number(store)
        run = record_run(store, recipe, outcomes)
        decision = decide(store, recipe, run, settings, tell_decision)
        decided = decision is not None and decision.number > before
        if decided or find_report(store, run) is None:  # the report shows the decision
            report_after_run(store, run)
    except StorageError as error:
        if store.is_writable():
            raise
        print(f"the store is read-only, so this run was not recorded: {error}")
        return run_name([outcome.manifest for outcome in outcomes])
    return _conclude(store, run, decision)


def _conclude(store: ArtifactStore, run: str, decision: Entry | None) -> str:
    """Say where a finished run is and what the gate decided, and return its name."""
    report = find_report(store, run)
    if report is not None:
        print(f"report {report}")
    print(status_line(decision))
    print(f"run {run} · store {store.uri} · `phivision sql` looks inside")
    if decision is not None and decision.action == "refused":
        raise SystemExit(NOT_PUBLISHED)
    return run
