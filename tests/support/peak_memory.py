"""How many bytes a step takes at its peak, beyond what was there when it began."""

from collections.abc import Callable
from pathlib import Path

from torch.profiler import ProfilerActivity, profile


def peak_allocated(step: Callable[[], object]) -> int:
    """The peak by torch's own account: every allocation and release of a tensor on the CPU.

    It is the same in every run, since neither the allocator's reserves nor the clock enter it.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        step()
    assert found.profiler is not None
    results = found.profiler.kineto_results
    assert results is not None
    events = [event for event in results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def peak_resident(step: Callable[[], object]) -> int:
    """The peak of this process by Linux's account: its resident set.

    Linux keeps the highest value; writing 5 to `clear_refs` starts it anew.
    """
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    step()
    return _status("VmHWM") - before


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith(f"{name}:"))
    return 1024 * int(line.split()[1])
