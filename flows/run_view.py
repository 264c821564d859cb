"""How a run looks that is at work: its stages, what it is doing, and how long that will take."""

import time

from rich.console import Group
from rich.table import Table
from rich.text import Text

from pipeline.engine.run_status import Snapshot

MINUTE, HOUR = 60.0, 3600.0
_STYLES = {"at work": "bold", "waiting": "dim", "cached": "dim"}


def view(snapshot: Snapshot, memory: int | None = None) -> Group:
    """Return what a person sees of a run."""
    age = time.time() - snapshot.started
    head = f"{snapshot.title} · {snapshot.store} · {duration(age)} · process {snapshot.process}"
    if memory is not None:
        head += f" · {memory / 1e9:.1f} GB"
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("stage", "state", "took", "expected"):
        table.add_column(name, justify="right" if name in ("took", "expected") else "left")
    for stage in snapshot.stages:
        took = "" if stage.seconds is None else duration(stage.seconds)
        expected = duration(stage.expected) if stage.expected else ""
        style = _STYLES.get(stage.state, "")
        table.add_row(*(Text(each, style) for each in (stage.name, stage.state, took, expected)))
    lines = [Text(head), table]
    if snapshot.label:
        lines.append(Text(_work(snapshot)))
    left, known = snapshot.seconds_left()
    about = f"{'about' if known else 'at least'} {duration(left)}"
    lines.append(Text(f"time left: {about if known or left else 'not known yet'}"))
    return Group(*lines)


def _work(snapshot: Snapshot) -> str:
    whole = f" of {snapshot.total:,}" if snapshot.total else ""
    rate = f", {snapshot.rate:,.1f}/s" if snapshot.rate else ""
    left = ""
    if snapshot.total and snapshot.rate:
        left = f", {duration((snapshot.total - snapshot.done) / snapshot.rate)} left"
    return f"{snapshot.label}: {snapshot.done:,}{whole}{rate}{left}  {snapshot.note}".rstrip()


def duration(seconds: float) -> str:
    """Return seconds in the unit that a person would use."""
    if seconds < 2 * MINUTE:
        return f"{seconds:.0f} s"
    if seconds < 2 * HOUR:
        return f"{seconds / MINUTE:.0f} min"
    return f"{seconds / HOUR:.1f} h"
