"""Byte ranges: which members of a remote archive share a request, and how much that wastes."""

from collections.abc import Iterable
from itertools import pairwise
from typing import NamedTuple

_LONGEST = 8 << 20  # bytes of one request; many of these keep every connection busy to the end
_WASTE = 0.02  # bytes between members that may be downloaded, per byte of members


class Span(NamedTuple):
    """Where one member lies: from `first` up to, not including, `end`."""

    name: str
    first: int
    end: int


def batches(
    spans: Iterable[Span], *, waste: float = _WASTE, longest: int = _LONGEST
) -> list[list[Span]]:
    """Return the spans in the order of their bytes, grouped into requests.

    The smallest gaps between neighbours are bridged first, as long as all bridged bytes together
    stay below `waste` times the bytes wanted: a request costs a round trip, a gap costs bytes.

    Args:
        spans: What is wanted; each member once.
        waste: Share of the wanted bytes that gaps may add.
        longest: Bytes of a request, unless a single member is longer.
    """
    ordered = sorted(spans, key=lambda span: (span.first, span.end))
    gaps = sorted(
        (after.first - before.end, number)
        for number, (before, after) in enumerate(pairwise(ordered), start=1)
        if after.first >= before.end  # overlaps come from broken archives: one request each
    )
    left, bridged = waste * sum(span.end - span.first for span in ordered), set()
    for gap, number in gaps:
        left -= gap
        if left < 0 and gap:
            break
        bridged.add(number)
    requests: list[list[Span]] = []
    for number, span in enumerate(ordered):
        if number in bridged and span.end - requests[-1][0].first <= longest:
            requests[-1].append(span)
        else:
            requests.append([span])
    return requests
