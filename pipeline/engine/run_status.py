"""What a run is doing, in a small file beside its work, which `phivision watch` shows.

The file is rewritten once a second while something moves and removed when the run ends. It is no
artifact: nothing depends on it, and what a killed run left is recognised by its process.
"""

import json
import os
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

FOLDER = "status"  # in the folder of workspaces; a file is named after its process
INTERVAL = 1.0  # seconds between two writes

State = Literal["waiting", "at work", "made", "cached"]


class StageStatus(BaseModel):
    """One stage of a run.

    Attributes:
        name: The stage.
        state: What becomes of it.
        seconds: What it took, or takes so far; None before it begins.
        expected: What it will take by earlier artifacts, None if none says; 0 where it is fresh.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    state: State
    seconds: float | None
    expected: float | None


class Snapshot(BaseModel):
    """A run at one moment; times are seconds since the epoch.

    Attributes:
        title: The preset.
        store: Address of the store.
        process: Its process id.
        started: When it began.
        updated: When this was written.
        stages: In the order of the DAG.
        label: The work at hand, "" between two.
        done: How much of it is done.
        total: How much it is, None where that is not known.
        rate: Done per second so far, None before the first.
        note: What the work says of itself, such as a loss.
    """

    model_config = ConfigDict(frozen=True)

    title: str
    store: str
    process: int
    started: float
    updated: float
    stages: tuple[StageStatus, ...]
    label: str
    done: int
    total: int | None
    rate: float | None
    note: str

    def seconds_left(self) -> tuple[float, bool]:
        """Return how many seconds are left, and whether that is all: else stages are unknown."""
        left, known = 0.0, True
        for stage in self.stages:
            if stage.state == "at work":
                here = self._bar_left()
                if here is None and stage.expected is not None:
                    here = max(0.0, stage.expected - (stage.seconds or 0.0))
                left, known = left + (here or 0.0), known and here is not None
            elif stage.state == "waiting":
                left, known = left + (stage.expected or 0.0), known and stage.expected is not None
        return left, known

    def _bar_left(self) -> float | None:
        return (self.total - self.done) / self.rate if self.total and self.rate else None


class RunStatus:
    """Keeps the status of the run of this process."""

    def __init__(
        self, folder: Path, store: str, title: str, expected: Mapping[str, float | None]
    ) -> None:
        self._path = folder / FOLDER / f"{os.getpid()}.json"
        self._store, self._title = store, title
        self._expected = dict(expected)
        self._states: dict[str, State] = dict.fromkeys(expected, "waiting")
        self._seconds: dict[str, float] = {}
        self._started = time.time()
        self._begun = self._written = 0.0
        self._clear()

    def begin(self, stage: str) -> None:
        """Note that a stage begins."""
        self._states[stage], self._begun = "at work", time.monotonic()
        self._write()

    def end(self, stage: str, state: State, seconds: float) -> None:
        """Note that a stage has ended."""
        self._states[stage], self._seconds[stage] = state, seconds
        self._clear()
        self._write()

    def work(self, label: str, total: int | None, done: int) -> None:
        """Note that a piece of work begins."""
        self._label, self._total = label, total
        self._first = self._done = done
        self._note, self._bar = "", time.monotonic()

    def advance(self, amount: int, note: str) -> None:
        """Note what was done since the last call."""
        self._done += amount
        self._note = note or self._note
        if time.monotonic() - self._written >= INTERVAL:
            self._write()

    def snapshot(self) -> Snapshot:
        """Return the status now."""
        now = time.monotonic()
        took, fresh = now - self._bar, self._done - self._first
        running = {name for name, state in self._states.items() if state == "at work"}
        seconds = self._seconds | dict.fromkeys(running, now - self._begun)
        return Snapshot(
            title=self._title,
            store=self._store,
            process=os.getpid(),
            started=self._started,
            updated=time.time(),
            stages=tuple(
                StageStatus(
                    name=name,
                    state=state,
                    seconds=seconds.get(name),
                    expected=self._expected[name],
                )
                for name, state in self._states.items()
            ),
            label=self._label,
            done=self._done,
            total=self._total,
            rate=fresh / took if fresh and took > 0 else None,
            note=self._note,
        )

    def remove(self) -> None:
        """Remove the file."""
        with suppress(OSError):
            self._path.unlink()

    def _clear(self) -> None:
        self._label, self._total, self._note = "", None, ""
        self._first = self._done = 0
        self._bar = time.monotonic()

    def _write(self) -> None:
        self._written = time.monotonic()
        temporary = self._path.with_suffix(".tmp")
        with suppress(OSError):  # a full disk must not end a run for this
            self._path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(self.snapshot().model_dump_json())
            temporary.replace(self._path)


_current: RunStatus | None = None


def current() -> RunStatus | None:
    """Return the status of this process's run, None outside one."""
    return _current


def note_begin(stage: str) -> None:
    """Note that a stage of this process's run begins."""
    if _current is not None:
        _current.begin(stage)


def note_end(stage: str, state: State, seconds: float) -> None:
    """Note that a stage of this process's run has ended."""
    if _current is not None:
        _current.end(stage, state, seconds)


@contextmanager
def showing(status: RunStatus) -> Generator[None]:
    """Keep a status while the block runs."""
    global _current
    _current = status
    try:
        yield
    finally:
        _current = None
        status.remove()


def read_snapshots(folder: Path) -> list[Snapshot]:
    """Return the runs at work on this machine, the newest first; files of dead ones are removed."""
    import psutil

    snapshots = []
    for path in (folder / FOLDER).glob("*.json"):
        try:
            snapshot = Snapshot.model_validate(json.loads(path.read_text()))
        except (OSError, ValueError, ValidationError):
            continue  # it has just ended, or is of another version
        if psutil.pid_exists(snapshot.process):
            snapshots.append(snapshot)
        else:
            path.unlink(missing_ok=True)
    return sorted(snapshots, key=lambda each: -each.started)
