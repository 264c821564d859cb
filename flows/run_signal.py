"""SIGUSR1 makes a run say what it is doing, as `dd` does."""

import signal
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType

from pipeline.engine.run_status import RunStatus


@contextmanager
def status_on_signal(status: RunStatus) -> Generator[None]:
    """Print a run's status on standard error whenever this process gets SIGUSR1."""
    wanted = getattr(signal, "SIGUSR1", None)  # Windows has none
    if wanted is None or threading.current_thread() is not threading.main_thread():
        yield
        return

    def tell(number: int, frame: FrameType | None) -> None:
        del number, frame
        from rich.console import Console

        from flows.run_view import view

        Console(file=sys.stderr, soft_wrap=False).print(view(status.snapshot()))

    before = signal.signal(wanted, tell)
    try:
        yield
    finally:
        signal.signal(wanted, before)
