"""Mark runs whose machine died as crashed.

A worker reports a flow process that dies. If the worker dies with it, the run would stay *Running*
for ever and hold its deployment's only slot. Our runs send a heartbeat every 30 seconds, wherever
they start, so this automation marks a run without one as crashed; runs of other flows, which may
be silent for longer, are left alone. Running this again changes nothing.
"""

from datetime import timedelta

from prefect.automations import Automation
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import EventTrigger, Posture

from flows.full_pipeline import full_pipeline
from flows.retrain import retrain
from flows.runner.ui_artifacts import ENDINGS

NAME = "phivision: runs without a heartbeat have crashed"
SILENCE = 120.0  # seconds; heartbeats come every 30, and a busy machine may be late with some
# Events are named after a state's name, which may differ from the name of its type.
_ENDINGS = (*ENDINGS, "Completed", "Failed", "TimedOut", "Cancelled", "Crashed")
FLOWS = [full_pipeline.name, retrain.name]


def lost_runs(silence: float) -> Automation:
    """Return the automation that marks a run as crashed after `silence` s without a heartbeat."""
    heartbeat = "prefect.flow-run.heartbeat"
    return Automation(
        name=NAME,
        description="The next run resumes where the lost one stopped: finished work is kept.",
        trigger=EventTrigger(
            after={heartbeat},
            expect={heartbeat, *(f"prefect.flow-run.{ending}" for ending in _ENDINGS)},
            match={"prefect.resource.id": "prefect.flow-run.*"},
            match_related={"prefect.resource.role": "flow", "prefect.resource.name": FLOWS},
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=timedelta(seconds=silence),
        ),
        actions=[
            ChangeFlowRunState(
                state=StateType.CRASHED,
                message="its worker and its process are gone; run again to resume",
            )
        ],
    )


def install(silence: float) -> None:
    """Write the automation to the server, replacing an older one of the same name."""
    remove(NAME)
    lost_runs(silence).create()


def remove(name: str) -> None:
    """Remove the automation of a name from the server, if it has one."""
    try:
        old = Automation.read(name=name)
    except ValueError:
        return
    if isinstance(old, Automation):
        old.delete()
