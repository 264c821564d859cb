"""What a run tells its webhook: published or refused, failed, the disk nearly full.

Each event is reported once, by the process in which it happened: a decision of the gate by the one
that recorded it, a failure by the outermost part of the run. A cached run that decides nothing
new is silent. A killed run cannot tell it: deployments/crash_notice.py has the server do so.
"""

import shutil
import sys
import threading
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from pathlib import Path

from flows.failures import explain
from flows.interrupts import was_asked_to_end
from flows.webhook import Webhook, webhook_address
from pipeline.engine.runs import metric_rows
from pipeline.evaluation.shown_metrics import SHOWN_METRICS
from pipeline.settings import Settings
from storage.errors import StorageError
from storage.store.artifacts import ArtifactStore
from storage.store.published import Entry
from storage.store.runs import read_run

SHARE, BYTES = 0.05, 10 * 10**9  # a disk with less free than both is nearly full
INTERVAL = 30.0  # seconds between two looks at the disks
_DECISIONS = {
    "published": "published run {run}",
    "forced": "published run {run} anyway: {reason}",
    "refused": "did not publish run {run}: {reason}",
}

_active: Webhook | None = None  # one run per process


@contextmanager
def notifying(title: str) -> Generator[None]:
    """Tell the webhook of the environment about a run, and at its end wait a little for answers.

    Within another one it does nothing: `phivision run` and the flow that it runs are one run.

    Raises:
        PipelineError: The address of the webhook is not valid.
    """
    global _active
    address = webhook_address()
    if address is None or _active is not None:
        yield
        return
    _active = Webhook(address)
    try:
        yield
    except Exception as error:
        if not was_asked_to_end(error):
            _active.send(f"phivision: the run of {title} failed: {_cause(error)}")
        raise
    finally:
        _active.close()
        _active = None


def tell_decision(store: ArtifactStore, entry: Entry) -> None:
    """Tell the webhook, if there is one, what the gate has just recorded about a run."""
    if _active is None:
        return
    decision = _DECISIONS[entry.action].format(run=entry.run, reason=entry.reason)
    parts = [f"phivision {decision}", _scores(store, entry.run), f"store {store.uri}"]
    _active.send(" · ".join(filter(None, parts)))


@contextmanager
def watching_disks(
    settings: Settings, share: float = SHARE, size: float = BYTES
) -> Generator[None]:
    """Tell the webhook, if there is one, once that a disk of the store or work is nearly full."""
    webhook = _active
    if webhook is None:
        yield
        return
    folders = [settings.work]
    if settings.is_local:
        folders.append(Path(settings.store.split("://", 1)[-1]).expanduser())
    ended = threading.Event()

    def watch() -> None:
        while not (warning := nearly_full(folders, share, size)):
            if ended.wait(INTERVAL):
                return
        print(warning, file=sys.stderr, flush=True)
        webhook.send(f"phivision: {warning}")

    thread = threading.Thread(target=watch, name="phivision-disks", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(1.0)


def nearly_full(folders: Iterable[Path], share: float = SHARE, size: float = BYTES) -> str:
    """Return which disk is nearly full in one line, or an empty string.

    Args:
        folders: Where files are written; they need not exist yet.
        share: A disk of which less than this share is free …
        size: … and fewer than so many bytes is nearly full.
    """
    for folder in folders:
        place = folder.absolute()
        while not place.exists() and place != place.parent:
            place = place.parent
        try:
            usage = shutil.disk_usage(place)
        except OSError:
            continue  # the stage that writes there says why it cannot
        if usage.free < min(share * usage.total, size):
            free, total = usage.free / 1e9, usage.total / 1e9
            return f"the disk of {place} is nearly full: {free:.1f} of {total:.1f} GB are free"
    return ""


def _cause(error: Exception) -> str:
    text = explain(error)
    if text is None:  # the text of a defect may quote anything
        return f"{type(error).__name__}, a defect: its traceback is in the log"
    return " ".join(text.split())


def _scores(store: ArtifactStore, run: str) -> str:
    """Return the main scores of a run with real images in one line, "" where there are none."""
    try:
        record = read_run(store, run)
        rows = metric_rows(store, record) if record else []
    except (StorageError, OSError, ValueError):  # a notification must not fail the run
        return ""
    values = {
        row["metric"]: row["value"]
        for row in rows
        if row["stage"] == "finetune" and row["condition"] == "real"
    }
    main = [name for name, metric in SHOWN_METRICS.items() if metric.main and name in values]
    return ", ".join(f"{name} {values[name]:.3g}" for name in main)
