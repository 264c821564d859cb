"""Captions on which those of similar training images agree."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from model.caption_consensus import CaptionConsensus, load_consensus
from model.errors import ModelError
from model.training_reference import pool

DOGS = ["a dog runs on grass", "a brown dog runs", "the dog is running on the grass"]
BOATS = ["a boat on a lake", "a red boat", "the boat lies on the lake"]
WIDTH = 8


def images(kinds: str) -> Tensor:
    """Return patches [image, patch, vision] of dogs and boats, alike within a kind."""
    torch.manual_seed(1)
    centres = {kind: torch.randn(WIDTH) for kind in "db"}
    return torch.stack([centres[kind] + 0.1 * torch.randn(4, WIDTH) for kind in kinds])


@pytest.fixture
def consensus() -> CaptionConsensus:
    texts = [DOGS if kind == "d" else BOATS for kind in "dddbbb"]
    return CaptionConsensus(pool(images("dddbbb")).half(), texts)


@pytest.mark.parametrize(("kind", "expected"), [("d", 1), ("b", 0)])
def test_the_caption_of_what_similar_images_show_is_chosen(
    consensus: CaptionConsensus, kind: str, expected: int
) -> None:
    (patches,) = images(kind)
    candidates = ["a boat on the lake", "a dog runs on the grass", "people sit at a table"]
    assert consensus.choose(patches, candidates) == expected
    wider = torch.cat([patches, torch.randn(4, 3)], dim=1)  # a second encoder's, which has no say
    assert consensus.choose(wider, candidates) == expected


def test_what_tells_captions_apart_is_learned() -> None:
    generator = torch.Generator().manual_seed(1)
    sides = torch.arange(240) % 2
    pooled = torch.randn(240, WIDTH, generator=generator)
    pooled[:, 0] = 1.6 * sides - 0.8  # images differ more in the other seven channels
    texts = [BOATS if side else DOGS for side in sides[:120].tolist()]
    places = torch.nn.functional.normalize(pooled, dim=-1)
    consensus = CaptionConsensus(places[:120].half(), texts)
    nearest = (places[120:] @ places[:120].T).argmax(dim=1)
    chosen = [
        consensus.choose(place[None], ["a brown dog", "a red boat"]) for place in places[120:]
    ]
    rights = (torch.tensor(chosen) == sides[120:]).float().mean()
    assert rights > 0.95
    assert (sides[:120][nearest] == sides[120:]).float().mean() < rights


def test_a_similar_images_caption_is_known_without_a_model(consensus: CaptionConsensus) -> None:
    assert consensus.caption(images("d")[0]) in DOGS
    assert consensus.caption(images("b")[0]) in BOATS


def test_of_equal_candidates_the_first_is_taken(consensus: CaptionConsensus) -> None:
    (patches,) = images("d")
    assert consensus.choose(patches, ["", "a dog runs", "A dog runs.", "…"]) == 1
    assert consensus.choose(patches, ["zebra", "giraffe"]) == 0


@given(st.lists(st.text(max_size=30), min_size=1, max_size=5))
def test_any_texts_can_be_compared(candidates: list[str]) -> None:
    texts = [DOGS if kind == "d" else BOATS for kind in "db"]
    chosen = CaptionConsensus(pool(images("db")).half(), texts).choose(images("d")[0], candidates)
    assert 0 <= chosen < len(candidates)


def test_a_bundle_keeps_what_chooses(consensus: CaptionConsensus, tmp_path: Path) -> None:
    consensus.save(tmp_path)
    again = load_consensus(tmp_path)
    assert torch.equal(again.pooled, consensus.pooled)
    assert again.captions == [list(texts) for texts in consensus.captions]


def test_files_that_do_not_belong_together_are_refused(
    consensus: CaptionConsensus, tmp_path: Path
) -> None:
    consensus.save(tmp_path)
    (tmp_path / "consensus.json").write_text('[["a dog"]]')
    with pytest.raises(ModelError, match=r"captions of 1 images, consensus\.safetensors has 6"):
        load_consensus(tmp_path)


def test_characters_count_where_there_are_no_blanks() -> None:
    texts = [["一只棕色的狗在草地上跑"], ["湖上有一条红色的船"]]
    consensus = CaptionConsensus(pool(images("db")).half(), texts)
    candidates = ["人们坐在桌边", "船在湖上", "狗在草地上"]
    assert consensus.choose(images("d")[0], candidates) == 2
