"""Progress for people who only have Prefect's UI: log lines, and a bar per piece of work."""

import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from uuid import UUID

import httpx
from prefect import get_run_logger
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.context import TaskRunContext

from pipeline.engine.run_status import current
from pipeline.progress import ConsoleReporter, Ticker

INTERVAL = 5.0  # seconds between two updates of the bar; shorter work shows none


class PrefectReporter(ConsoleReporter):
    """Shows on the console what `ConsoleReporter` shows, and the same in Prefect's UI."""

    def __init__(self, stage: str) -> None:
        super().__init__()
        self.stage = stage
        self._logger = get_run_logger()

    def say(self, text: str) -> None:
        """Show one line, and keep it in the task run's log."""
        super().say(text)
        self._logger.info(text.strip())

    @contextmanager
    def track(self, label: str, total: int | None, done: int = 0) -> Generator[Ticker]:
        """Show a bar (or log lines) for one piece of work."""
        bar = _Bar(f"{self.stage}-progress", label, total, done)
        status = current()
        if status is not None:
            status.work(label, total, done)
        with super().track(label, total, done) as console:

            def tick(amount: int = 1, note: str = "") -> None:
                console(amount, note)
                bar.advance(amount)
                if status is not None:
                    status.advance(amount, note)

            yield tick
            bar.finish()


class _Bar:
    """One Prefect progress artifact, made when the work turns out to take a while."""

    def __init__(self, key: str, label: str, total: int | None, done: int) -> None:
        self._key, self._label, self._total, self._done = key, label, total, done
        self._artifact: UUID | None = None
        self._last = time.monotonic()

    def advance(self, amount: int) -> None:
        self._done += amount
        if self._total and time.monotonic() - self._last >= INTERVAL:
            self._last = time.monotonic()
            self._show(min(100.0, 100 * self._done / self._total))

    def finish(self) -> None:
        if self._artifact is not None:
            self._show(100.0)

    def _show(self, percent: float) -> None:
        if TaskRunContext.get() is None:
            return  # another thread than the stage's own; the console shows its work
        about = f"{self._label}: {self._done:,} of {self._total:,}"
        # A bar must not fail the stage: the server may be unreachable for a while.
        with suppress(httpx.HTTPError):
            if self._artifact is None:
                made = create_progress_artifact(percent, self._key, about)
                assert isinstance(made, UUID)  # a coroutine only in async code
                self._artifact = made
            else:
                update_progress_artifact(self._artifact, percent, about)
