"""How much memory a process and all its descendants hold, by Linux's account."""

import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

INTERVAL = 0.1


class Held(NamedTuple):
    """Bytes that a tree of processes holds.

    Attributes:
        own: What the kernel cannot take back: anonymous and shared memory.
        resident: The same with pages of mapped files, which it can; pages that two processes map
            count twice.
    """

    own: int
    resident: int


def held_by(pid: int) -> Held:
    """Return what a process and its descendants hold now; nothing for one that has ended."""
    own = resident = 0
    with suppress(OSError):  # it may end while it is looked at
        status = dict(
            line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines()
        )
        parts = [_bytes(status.get(name, "0 kB")) for name in ("RssAnon", "RssShmem", "RssFile")]
        own, resident = parts[0] + parts[1], sum(parts)
    for child in _children(pid):
        below = held_by(child)
        own, resident = own + below.own, resident + below.resident
    return Held(own, resident)


def _bytes(text: str) -> int:
    return 1024 * int(text.split()[0])


def _children(pid: int) -> list[int]:
    found: list[int] = []
    with suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            with suppress(OSError):
                found += map(int, (task / "children").read_text().split())
    return found


class Watch:
    """Remembers the most that a tree has held since it was last asked.

    Args:
        pid: The root of the tree.
        interval: Seconds between two looks.
    """

    def __init__(self, pid: int, interval: float = INTERVAL) -> None:
        self.pid, self.interval = pid, interval
        self._most, self._ended = Held(0, 0), threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def take(self) -> Held:
        """Return the peaks since the last call, each for itself."""
        with self._lock:
            most, self._most = self._most, Held(0, 0)
        return most

    def end(self) -> None:
        """Stop looking."""
        self._ended.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._ended.is_set():
            now = held_by(self.pid)
            with self._lock:
                self._most = Held(*map(max, self._most, now))
            time.sleep(self.interval)
