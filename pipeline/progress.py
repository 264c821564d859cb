"""Progress for people: live bars on a terminal, sparse lines in a log."""

import sys
import time
from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

LOG_INTERVAL = 10.0  # seconds between lines where no terminal shows a bar


class Ticker(Protocol):
    """Moves one bar; called with the work done since the last call and an optional note."""

    def __call__(self, amount: int = 1, note: str = "") -> None:
        """Advance the bar."""


def silent(amount: int = 1, note: str = "") -> None:
    """Ignore progress: a `Ticker` for callers that show none."""
    del amount, note


class Reporter(Protocol):
    """Shows what a stage is doing."""

    def say(self, text: str) -> None:
        """Show one line."""
        ...

    def track(
        self, label: str, total: int | None, done: int = 0
    ) -> AbstractContextManager[Ticker, bool | None]:
        """Return a context that yields a `Ticker` for the bar it shows."""
        ...


class ConsoleReporter:
    """Rich bars on a terminal; one line every ten seconds elsewhere. Writes to stderr."""

    def __init__(self) -> None:
        from rich.console import Console  # `plan` imports this module and shows no bar

        self.console = Console(file=sys.stderr, highlight=False)

    def say(self, text: str) -> None:
        """Show one line."""
        self.console.print(text, markup=False)

    @contextmanager
    def track(self, label: str, total: int | None, done: int = 0) -> Generator[Ticker]:
        """Show a bar (or log lines) for one piece of work."""
        if not self.console.is_terminal:
            yield _LogTicker(self, label, total, done)
            return
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            ProgressColumn,
            SpinnerColumn,
            Task,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )
        from rich.text import Text

        class RateColumn(ProgressColumn):
            """Work per second, from the last half minute."""

            def render(self, task: Task) -> Text:
                return Text(f"{task.speed:,.1f}/s" if task.speed else "")

        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            RateColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        with Progress(*columns, console=self.console, transient=True) as bars:
            task = bars.add_task(label, total=total, completed=done, note="")

            def tick(amount: int = 1, note: str = "") -> None:
                bars.update(task, advance=amount)
                if note:
                    bars.update(task, note=note)

            yield tick


class _LogTicker:
    """Prints a line at most every `LOG_INTERVAL` seconds, with rate and time left."""

    def __init__(self, reporter: ConsoleReporter, label: str, total: int | None, done: int) -> None:
        self.reporter, self.label, self.total = reporter, label, total
        self.first = self.done = done
        self.start = self.last = time.monotonic()

    def __call__(self, amount: int = 1, note: str = "") -> None:
        self.done += amount
        now = time.monotonic()
        if now - self.last < LOG_INTERVAL:
            return
        self.last = now
        rate = (self.done - self.first) / (now - self.start)
        left = f", {(self.total - self.done) / rate:.0f} s left" if self.total and rate else ""
        whole = f"/{self.total}" if self.total else ""
        self.reporter.say(f"  {self.label}: {self.done}{whole}, {rate:.1f}/s{left} {note}".rstrip())
