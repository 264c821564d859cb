"""Rows of text alone: what they learn is what the language model reads without any image."""

import numpy as np
import torch
from torch import Tensor

from model.batch import Batch
from model.vlm import VisionLanguageModel
from pipeline.training.collate import collate
from tests.unit.model.test_shared_rows import (
    PATCHES,
    VISION,
    VOCABULARY,
    each_attention,
    tiny_vlm,
)

LENGTHS = (7, 4, 9)
HAS_IMAGE = torch.tensor([True, False, True])


def batch(has_image: Tensor | None = None, seed: int = 0) -> Batch:
    rng = np.random.default_rng(3)
    ids = [rng.integers(VOCABULARY, size=n) for n in LENGTHS]
    targets = [np.arange(n) >= 2 for n in LENGTHS]
    patches = torch.randn(
        len(LENGTHS), PATCHES, VISION, generator=torch.Generator().manual_seed(seed)
    )
    return collate(patches, ids, targets, None, has_image)


def by_row(nll: Tensor) -> list[Tensor]:
    return list(nll.split([n - 2 for n in LENGTHS]))


def read_alone(vlm: VisionLanguageModel, given: Batch, row: int) -> Tensor:
    """The same text behind nothing but the separator."""
    ids = given.input_ids[row, : LENGTHS[row]]
    separator = vlm.vision_prefix.separator[None]
    joint = torch.cat([separator, vlm.embed_text(ids[:-1])])[None]
    return vlm.nll(vlm.hidden(joint)[0, 2:], ids[2:])


@each_attention
def test_a_text_alone_reads_as_behind_the_separator_only(attention: str) -> None:
    vlm, given = tiny_vlm(attention), batch(HAS_IMAGE)
    found = by_row(vlm(given))
    # Rotary positions are relative: the place behind the hidden image changes nothing.
    torch.testing.assert_close(found[1], read_alone(vlm, given, 1), rtol=1e-4, atol=1e-5)


@each_attention
def test_rows_with_an_image_are_what_they_were(attention: str) -> None:
    vlm = tiny_vlm(attention)
    plain, mixed = by_row(vlm(batch())), by_row(vlm(batch(HAS_IMAGE)))
    for row in (0, 2):
        torch.testing.assert_close(mixed[row], plain[row], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(mixed[1], plain[1], atol=1e-3)


def test_the_patches_of_a_text_alone_get_no_gradient() -> None:
    vlm, given = tiny_vlm(), batch(HAS_IMAGE)
    patches = given.patches.clone().requires_grad_()
    vlm(given.showing(patches)).sum().backward()
    assert patches.grad is not None
    assert patches.grad[1].abs().max() == 0
    assert patches.grad[0].abs().max() > 0
    other = by_row(vlm(batch(HAS_IMAGE, seed=1)))[1]
    torch.testing.assert_close(other, by_row(vlm(given))[1])


def test_a_batch_without_images_is_no_number_nowhere() -> None:
    vlm = tiny_vlm()
    nll = vlm(batch(torch.zeros(len(LENGTHS), dtype=torch.bool)))
    assert torch.isfinite(nll).all()
    nll.sum().backward()
    grads = [p.grad for p in vlm.parameters() if p.grad is not None]
    assert all(torch.isfinite(grad).all() for grad in grads)
