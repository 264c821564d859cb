"""`phivision watch`: a run that is at work in another terminal, or that a worker has started."""

import sys
import time
from contextlib import suppress

from rich.console import Console
from rich.live import Live

from flows.run_view import view
from pipeline.engine.run_status import Snapshot, read_snapshots
from pipeline.settings import Settings

INTERVAL = 1.0  # seconds between two looks


def watch_run(settings: Settings, *, once: bool) -> None:
    """Show the newest run of a store that is at work on this machine, until it ends."""
    shown = _newest(settings)
    if shown is None:
        print(f"no run is at work in {settings.store} on this machine")
        print("  → `phivision run` starts one; Prefect's UI shows those of other machines")
        return
    console = Console(soft_wrap=False)
    if once or not sys.stdout.isatty():
        console.print(view(shown, _memory(shown)))
        return
    with Live(view(shown, _memory(shown)), console=console, auto_refresh=False) as live:
        while now := _same(settings, shown):
            live.update(view(now, _memory(now)), refresh=True)
            time.sleep(INTERVAL)
    console.print("the run has ended: `phivision runs` lists it if it has finished")


def _newest(settings: Settings) -> Snapshot | None:
    return next(iter(read_snapshots(settings.work)), None)


def _same(settings: Settings, shown: Snapshot) -> Snapshot | None:
    """Return the run again, None when it has ended."""
    snapshots = read_snapshots(settings.work)
    return next((each for each in snapshots if each.process == shown.process), None)


def _memory(snapshot: Snapshot) -> int | None:
    """Return the bytes of memory of a run's processes, None where they cannot be asked."""
    import psutil

    with suppress(psutil.Error):
        root = psutil.Process(snapshot.process)
        return sum(each.memory_info().rss for each in (root, *root.children(recursive=True)))
    return None
