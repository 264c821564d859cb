"""OpenLineage events of a run's stages, for the receiver that OpenLineage's variables name.

A thread sends them, so that no receiver can hold up a run or fail it.
"""

import os
import sys
import threading
import uuid
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from queue import SimpleQueue
from typing import Any

from storage.errors import redact
from storage.store.manifest import Manifest

SWITCHES = ("OPENLINEAGE_URL", "OPENLINEAGE_CONFIG", "OPENLINEAGE__TRANSPORT__TYPE")
WAIT = 10.0  # seconds after a run for the last events


@contextmanager
def lineage(store: str, wait: float = WAIT) -> Generator["Lineage"]:
    """Yield the reporter of a run's stages; it sends nothing where no variable names a receiver.

    Args:
        store: Address of the store, the namespace of all datasets; its secrets are masked.
        wait: Seconds at the end for the last events.
    """
    events = Lineage(redact(store))
    if not any(os.environ.get(name) for name in SWITCHES):
        yield events
        return
    thread = threading.Thread(target=events.send, name="phivision-lineage", daemon=True)
    thread.start()
    try:
        yield events
    finally:
        events.queue.put(None)
        thread.join(wait)


class Lineage:
    """Queues events for `send`; their datasets are artifacts, by stage and digest."""

    def __init__(self, store: str) -> None:
        self._store = store
        self.queue: SimpleQueue[Callable[[], Any] | None] = SimpleQueue()

    @contextmanager
    def stage(
        self, name: str, inputs: Mapping[str, Manifest]
    ) -> Generator[Callable[[Manifest], None]]:
        """Report the start and the end of a stage; its artifact goes to the yielded function."""
        run, outputs = str(uuid.uuid4()), []

        def report(kind: str) -> None:
            parts = (kind, datetime.now(UTC).isoformat(), run, name, [*inputs.values()], [*outputs])
            self.queue.put(lambda: _event(self._store, *parts))

        report("START")
        try:
            yield outputs.append
        except BaseException as error:
            report("FAIL" if isinstance(error, Exception) else "ABORT")
            raise
        report("COMPLETE")

    def send(self) -> None:
        """Send the queued events, until a None is among them."""
        try:
            from openlineage.client import OpenLineageClient

            client = OpenLineageClient()
            while (event := self.queue.get()) is not None:
                client.emit(event())
        except Exception as error:  # its text may hold the address
            fault = f"({type(error).__name__}); the client is pip install 'phivision[lineage]'"
            print(f"OpenLineage events are not delivered {fault}", file=sys.stderr, flush=True)


def _event(
    store: str,
    kind: str,
    time: str,
    run: str,
    stage: str,
    inputs: Sequence[Manifest],
    outputs: Sequence[Manifest],
) -> Any:
    from openlineage.client import event_v2 as v2
    from openlineage.client.facet_v2 import dataset_version_dataset as version

    def facets(made: Manifest) -> dict[str, Any]:
        return {"version": version.DatasetVersionDatasetFacet(datasetVersion=made.digest)}

    return v2.RunEvent(
        eventType=v2.RunState(kind),
        eventTime=time,
        run=v2.Run(runId=run),
        job=v2.Job(os.environ.get("OPENLINEAGE_NAMESPACE", "phivision"), stage),
        inputs=[v2.InputDataset(store, made.stage, facets=facets(made)) for made in inputs],
        outputs=[v2.OutputDataset(store, made.stage, facets=facets(made)) for made in outputs],
        producer="urn:phivision",
    )
