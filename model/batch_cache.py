"""Keys and values of texts that join and leave a batch, written in place.

transformers' dynamic cache copies all positions for every new token, which was a third of the time
of writing captions on a CPU. Here a layer has room for more rows and positions, and what it shows
is a window of that room. As in a static cache, a token costs its own keys and values alone; unlike
there, no length has to be known before.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

SPARE = 16  # positions for which room is made at a time


class BatchCache(Cache):
    """The cache of a batch; all rows end at the same position, short ones are padded in front.

    Args:
        first: The cache that the first texts have left; its tensors are taken over.
    """

    def __init__(self, first: Cache) -> None:
        super().__init__(layers=[_RoomyLayer() for _ in first.layers])
        self.add(first)

    def add(self, cache: Cache) -> None:
        """Put the rows of another cache behind those of the batch."""
        for layer, new in zip(_layers(self), _layers(cache), strict=True):
            layer.add(new.keys, new.values)

    def keep(self, order: Sequence[int], skipped: int) -> None:
        """Keep some rows, and drop the first positions of all.

        Args:
            order: From `filled`: which row each place has afterwards.
            skipped: Positions to drop.
        """
        moved = [place for place, row in enumerate(order) if place != row]
        pairs = torch.tensor([moved, [order[place] for place in moved]], dtype=torch.long)
        # To the device once, not once a layer.
        places, rows = pairs.to(_layers(self)[0].keys.device)
        for layer in _layers(self):
            layer.keep(places, rows, len(order), skipped)


def filled(kept: Sequence[int]) -> list[int]:
    """Return which row each place has when the last rows fill the places of those that left.

    Args:
        kept: The rows that stay, rising.
    """
    count = len(kept)
    stay = {row for row in kept if row < count}
    movers = iter(kept[len(stay) :])
    return [place if place in stay else next(movers) for place in range(count)]


class _RoomyLayer(DynamicLayer):
    """A layer whose keys and values [row, head, position, width] are windows of larger tensors."""

    def __init__(self) -> None:
        super().__init__()
        self._rooms: list[Tensor] = []
        self._rows = self._start = self._end = 0

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write the newest positions of all rows, and return all positions."""
        new = key_states.shape[2]
        self._make_room(self._rows, before=0, after=new)
        end = self._end + new
        for room, states in zip(self._rooms, (key_states, value_states), strict=True):
            room[: self._rows, :, self._end : end] = states
        return self._show(self._rows, self._start, end)

    def add(
        self,
        keys: Float[Tensor, "row head position width"],
        values: Float[Tensor, "row head position width"],
    ) -> None:
        """Put rows behind the others, all padded with zeros in front to the longest."""
        if not self._rooms:
            self.lazy_initialization(keys, values)
            self._rooms = [keys, values]
            self._show(len(keys), 0, keys.shape[2])
            return
        rows, length = self._rows + len(keys), keys.shape[2]
        self._make_room(rows, before=max(0, length - (self._end - self._start)), after=0)
        start = min(self._start, self._end - length)
        for room, states in zip(self._rooms, (keys, values), strict=True):
            room[: self._rows, :, start : self._start] = 0
            room[self._rows : rows, :, start : self._end - length] = 0
            room[self._rows : rows, :, self._end - length : self._end] = states
        self._show(rows, start, self._end)

    def keep(
        self,
        places: Int64[Tensor, " moved"],
        movers: Int64[Tensor, " moved"],
        rows: int,
        skipped: int,
    ) -> None:
        """Move rows to other places, and show the first `rows` without the first positions."""
        start = self._start + skipped
        if len(places):
            window = slice(start, self._end)
            for room in self._rooms:
                room[places, :, window] = room[movers, :, window]
        self._show(rows, start, self._end)

    def _show(self, rows: int, start: int, end: int) -> tuple[Tensor, Tensor]:
        self._rows, self._start, self._end = rows, start, end
        keys, values = (room[:rows, :, start:end] for room in self._rooms)
        self.keys, self.values = keys, values
        return keys, values

    def _make_room(self, rows: int, before: int, after: int) -> None:
        """See that so many rows fit, and positions before and after the others."""
        held, _, positions, _ = self._rooms[0].shape
        if rows <= held and before <= self._start and self._end + after <= positions:
            return
        length = self._end - self._start
        for number, room in enumerate(self._rooms):
            heads, width = room.shape[1], room.shape[3]
            size = before + length + after + SPARE
            larger = room.new_empty(max(rows, held), heads, size, width)
            old = room[: self._rows, :, self._start : self._end]
            larger[: self._rows, :, before : before + length] = old
            self._rooms[number] = larger
        self._start, self._end = before, before + length


def _layers(cache: Cache) -> list[Any]:
    """Return the layers; transformers' own type of them has no keys and values of tensors."""
    return cache.layers
