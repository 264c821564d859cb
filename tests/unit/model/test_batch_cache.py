"""A batch's cache shows each text the keys and values that it left, whatever joins and leaves."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import DynamicCache

from model.batch_cache import SPARE, BatchCache, filled

LAYERS, HEADS, WIDTH = 2, 2, 3


def states(rows: int, positions: int, seed: int) -> list[tuple[Tensor, Tensor]]:
    """Keys and values of every layer."""
    generator = torch.Generator().manual_seed(seed)
    shape = (2, rows, HEADS, positions, WIDTH)
    return [tuple(torch.randn(shape, generator=generator)) for _ in range(LAYERS)]


class Plain:
    """The texts of a batch, each by itself: for every layer its keys and values."""

    def __init__(self) -> None:
        self.rows: list[list[tuple[Tensor, Tensor]]] = []

    def add(self, made: list[tuple[Tensor, Tensor]]) -> None:
        for row in range(len(made[0][0])):
            self.rows.append([(keys[row], values[row]) for keys, values in made])

    def write(self, made: list[tuple[Tensor, Tensor]]) -> None:
        self.rows = [
            [
                (torch.cat([old[0], new[0][at]], 1), torch.cat([old[1], new[1][at]], 1))
                for old, new in zip(row, made, strict=True)
            ]
            for at, row in enumerate(self.rows)
        ]

    @property
    def longest(self) -> int:
        return max(row[0][0].shape[1] for row in self.rows)

    def check(self, cache: BatchCache) -> None:
        assert cache.get_seq_length() == self.longest
        for number, layer in enumerate(cache.layers):
            for which, shown in enumerate((layer.keys, layer.values)):
                assert torch.is_tensor(shown)
                assert shown.shape == (len(self.rows), HEADS, self.longest, WIDTH)
                for at, row in enumerate(self.rows):
                    own = row[number][which]
                    padding = self.longest - own.shape[1]
                    torch.testing.assert_close(shown[at, :, padding:], own, rtol=0, atol=0)
                    # Attention multiplies what is masked by 0, and 0 times NaN is NaN.
                    assert shown[at, :, :padding].isfinite().all()


def dynamic(made: list[tuple[Tensor, Tensor]]) -> DynamicCache:
    cache = DynamicCache()
    for number, (keys, values) in enumerate(made):
        cache.update(keys, values, number)
    return cache


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_rows_keep_their_states(data: st.DataObject) -> None:
    plain, cache = Plain(), None
    for seed in range(data.draw(st.integers(1, 12), label="steps")):
        kinds = ["join"] if cache is None else ["join", "write", "write", "leave"]
        match data.draw(st.sampled_from(kinds), label="step"):
            case "join":
                made = states(data.draw(st.integers(1, 3)), data.draw(st.integers(1, 50)), seed)
                plain.add(made)
                if cache is None:
                    cache = BatchCache(dynamic(made))
                else:
                    cache.add(dynamic(made))
            case "write":
                assert cache is not None
                for count in range(data.draw(st.sampled_from([1, 3, SPARE + 5]))):
                    made = states(len(plain.rows), 1, 100 * seed + count)
                    plain.write(made)
                    for number, (keys, values) in enumerate(made):
                        shown = cache.update(keys, values, number)
                        assert [each.shape[2] for each in shown] == [plain.longest] * 2
            case "leave":
                assert cache is not None
                stay = [at for at in range(len(plain.rows)) if data.draw(st.booleans())]
                if not stay:
                    continue
                before = plain.longest
                order = filled(stay)
                plain.rows = [plain.rows[row] for row in order]
                cache.keep(order, before - plain.longest)
        assert cache is not None
        plain.check(cache)


def test_a_token_is_written_in_place() -> None:
    cache = BatchCache(dynamic(states(2, 4, 0)))
    cache.update(*states(2, 1, 1)[0], 0)  # makes room
    place = cache.layers[0].keys
    shown, _ = cache.update(*states(2, 1, 2)[0], 0)
    assert place is not None
    assert shown.data_ptr() == place.data_ptr()


@given(st.sets(st.integers(0, 20)))
def test_last_rows_fill_the_places_of_those_that_left(kept: set[int]) -> None:
    order = filled(sorted(kept))
    assert sorted(order) == sorted(kept)
    stayed = [row for place, row in enumerate(order) if place == row]
    assert stayed == [row for row in sorted(kept) if row < len(kept)]
