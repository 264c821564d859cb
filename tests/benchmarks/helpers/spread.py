"""How benchmarks print what they measured several times."""

import statistics
from collections.abc import Sequence


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Return the median, and the smallest and the largest in brackets if there are several."""
    middle = f"{statistics.median(values):.{digits}f}"
    if len(values) < 2:
        return middle
    return f"{middle} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def ratio(over: Sequence[float], under: Sequence[float], digits: int = 2) -> str:
    """Return the spread of the ratio of two sides that were measured in turns."""
    return spread([one / other for one, other in zip(over, under, strict=True)], digits)
