"""Have the server tell a webhook about crashed runs.

A run tells its webhook itself how it ended (flows/notifications.py), but not that it was killed:
the server learns that from the worker, or from deployments/lost_runs.py. The address comes from
`PHIVISION_WEBHOOK` and is kept encrypted, in a block of the server; without one, this removes both
the automation and the block. Running this again changes nothing.
"""

from datetime import timedelta
from uuid import UUID

from prefect.automations import Automation
from prefect.blocks.webhook import Webhook
from prefect.events.actions import CallWebhook
from prefect.events.schemas.automations import EventTrigger, Posture
from prefect.types import SecretDict

from deployments.lost_runs import FLOWS, remove
from flows.webhook import webhook_address

NAME = "phivision: a crashed run is told to the webhook"
BLOCK = "phivision-webhook"
# Slack's JSON, with its three control characters escaped; event.payload is the change of state.
_TEXT = (
    '{"text": {{ ("phivision: the run " ~ flow_run.name ~ " of " ~ flow.name ~ " crashed: "'
    " ~ (event.payload.validated_state.message or 'no reason is known'))"
    ' | replace("&", "&amp;") | replace("<", "&lt;") | replace(">", "&gt;") | tojson }}}'
)


def crash_notice(block: UUID) -> Automation:
    """Return the automation that calls the webhook of a block once for each crashed run."""
    return Automation(
        name=NAME,
        description="The address is in the block phivision-webhook.",
        trigger=EventTrigger(
            expect={"prefect.flow-run.Crashed"},
            match={"prefect.resource.id": "prefect.flow-run.*"},
            match_related={"prefect.resource.role": "flow", "prefect.resource.name": FLOWS},
            for_each={"prefect.resource.id"},
            posture=Posture.Reactive,
            threshold=1,
            # It fires at the first event, and then not again for the same run: a worker and
            # deployments/lost_runs.py may both find a run crashed.
            within=timedelta(minutes=10),
        ),
        actions=[CallWebhook(block_document_id=block, payload=_TEXT)],
    )


def install() -> None:
    """Write block and automation to the server, or remove them where no address is set.

    Raises:
        PipelineError: The address is not valid.
    """
    address = webhook_address()
    remove(NAME)
    if address is not None:
        headers = SecretDict({"Content-Type": "application/json"})
        block = Webhook(url=address, headers=headers).save(BLOCK, overwrite=True)
        assert isinstance(block, UUID)  # a coroutine only in async code
        crash_notice(block).create()
        return
    try:
        Webhook.delete(BLOCK)
    except ValueError:
        return  # there is none
