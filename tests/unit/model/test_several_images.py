"""Several images of an example: each has its own prefix where the text says so."""

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from model.batch import Batch
from model.errors import ModelError
from model.generation import generate, stream
from model.generation_configs import BeamConfig, GreedyConfig
from model.prompt import IMAGE
from model.vlm import VisionLanguageModel
from pipeline.training.collate import collate, widened
from tests.support.sampling_reference import scheduled_sampling_reference
from tests.unit.model.test_shared_rows import PATCHES, VISION, tiny_vlm

PREFIX = PATCHES + 1
# Of three rows the second is about three images, the others about one.
TEXTS = [[3, 4, 5], [6, IMAGE, 7, 8, IMAGE, 9, 10], [11, 12, 13, 14]]
ROWS = [[0], [1, 3, 4], [2]]  # which images each is about
EOS = 7


def images(count: int = 5) -> Tensor:
    return torch.randn(count, PATCHES, VISION, generator=torch.Generator().manual_seed(3))


def batch(texts: Sequence[list[int]], patches: Tensor) -> Batch:
    """Rows of which the last two tokens are targets."""
    ids = [np.array(text) for text in texts]
    last = [np.arange(len(text)) >= len(text) - 2 for text in ids]
    both = [widened(*pair, PREFIX) for pair in zip(ids, last, strict=True)]
    return collate(patches, *zip(*both, strict=True))


def joined(vlm: VisionLanguageModel, text: Sequence[int], patches: Tensor) -> Tensor:
    """Return the embeddings of one row, put together token by token."""
    prefixes = iter(vlm.embed_images(patches).tokens)
    pieces = [next(prefixes)]
    for token in text:
        word = next(prefixes) if token == IMAGE else vlm.embed_text(torch.tensor([token]))
        pieces.append(word)
    return torch.cat(pieces)[None]


def test_each_image_stands_where_the_text_says() -> None:
    vlm, patches = tiny_vlm(), images()
    with torch.no_grad():
        found = vlm(batch(TEXTS, patches))
    for number, (text, row) in enumerate(zip(TEXTS, ROWS, strict=True)):
        with torch.no_grad():
            whole = joined(vlm, text, patches[row])
            logits = vlm.language_model(inputs_embeds=whole).logits[0, -3:-1]
            expected = torch.nn.functional.cross_entropy(
                logits, torch.tensor(text[-2:]), reduction="none"
            )
        assert found[2 * number : 2 * number + 2].tolist() == pytest.approx(
            expected.tolist(), rel=1e-4
        )


def test_every_image_is_learned_from() -> None:
    vlm, patches = tiny_vlm(), images().requires_grad_()
    vlm(batch(TEXTS, patches))[2:4].sum().backward()
    assert patches.grad is not None
    reached = patches.grad.abs().amax(dim=(1, 2)) > 0
    assert reached.tolist() == [number in ROWS[1] for number in range(5)]


def test_a_row_of_several_images_changes_no_other_row() -> None:
    vlm, patches = tiny_vlm(), images()
    alone = vlm(batch([TEXTS[0], TEXTS[2]], patches[[0, 2]]))
    among = vlm(batch(TEXTS, patches))[[0, 1, 4, 5]]
    assert among.tolist() == pytest.approx(alone.tolist(), rel=1e-4)


def test_a_batch_says_which_place_is_not_a_target() -> None:
    ids, patches = np.array([3, IMAGE, 4]), images(2)
    with pytest.raises(ModelError, match="place of an image is marked as supervised"):
        collate(patches, [widened(ids, np.ones(3, np.bool_), PREFIX)[0]], [np.ones(2 + PREFIX) > 0])


def test_the_sequential_reference_takes_one_image_at_most() -> None:
    with pytest.raises(ModelError):
        scheduled_sampling_reference(
            tiny_vlm(), batch(TEXTS, images()), 0.5, torch.Generator().manual_seed(0)
        )


@torch.no_grad()
def greedy(vlm: VisionLanguageModel, text: list[int], patches: Tensor, length: int) -> list[int]:
    """Return the likeliest tokens, one after the other, without a cache."""
    written: list[int] = []
    while len(written) < length:
        whole = joined(vlm, [*text, *written], patches)
        token = int(vlm.language_model(inputs_embeds=whole).logits[0, -1].argmax())
        if token == EOS:
            break
        written.append(token)
    return written


def test_texts_are_written_about_several_images() -> None:
    vlm, patches = tiny_vlm(), images()
    told = {"eos_id": EOS, "max_new_tokens": 8}
    expected = [greedy(vlm, text, patches[row], 8) for text, row in zip(TEXTS, ROWS, strict=True)]
    found = generate(vlm, patches, TEXTS, **told, decoding=GreedyConfig())
    assert [each.ids for each in found] == expected
    for text, row, ids in zip(TEXTS, ROWS, expected, strict=True):
        assert list(stream(vlm, patches[row], text, **told, decoding=GreedyConfig())) == ids
    beams = BeamConfig(beams=2, length_penalty=1.0)
    together = generate(vlm, patches, TEXTS, **told, decoding=beams)
    alone = generate(vlm, patches[ROWS[1]], TEXTS[1:2], **told, decoding=beams)
    assert together[1] == alone[0]


def test_images_that_no_prompt_names_are_refused() -> None:
    counts = itertools.product((3, 4, 6), [TEXTS])
    for given, prompts in counts:
        with pytest.raises(ModelError, match=f"about 5 images, {given} are given"):
            generate(
                tiny_vlm(),
                images(given),
                prompts,
                eos_id=EOS,
                max_new_tokens=2,
                decoding=GreedyConfig(),
            )
