"""Patch embeddings of two encoders on one grid, side by side."""

from pathlib import Path

import pytest
import torch

from model.encoder import PatchEncoder
from model.joined_encoders import JoinedEncoders, join
from tests.unit.model.test_timm_encoder import encoder_of, images


def embeddings(images: int, side: int, width: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (20 * torch.randn(images, side * side, width, generator=generator)).half()


def test_an_encoder_that_has_the_grid_is_left_as_it_is() -> None:
    first, second = embeddings(3, 4, 5), embeddings(3, 4, 2, seed=1)
    joined = join([first, second], 16)
    assert joined.shape == (3, 16, 7)
    assert torch.equal(joined[..., :5], first)
    assert torch.equal(joined[..., 5:], second)


def test_a_larger_grid_is_averaged_over_the_cell_it_falls_into() -> None:
    fine = embeddings(2, 6, 3)
    cells = fine.float().view(2, 3, 2, 3, 2, 3)  # image, row, in row, column, in column, width
    expected = cells.mean(dim=(2, 4)).view(2, 9, 3).half()
    joined = join([embeddings(2, 3, 1), fine], 9)[..., 1:]
    torch.testing.assert_close(joined, expected, rtol=1e-3, atol=1e-3)


def test_a_smaller_grid_is_interpolated_between_the_middles_of_cells() -> None:
    coarse = torch.tensor([0.0, 4.0, 8.0, 12.0]).half().view(1, 4, 1)  # falls by 4, right and down
    joined = join([coarse, embeddings(1, 4, 1)], 16)[0, :, 0].view(4, 4)
    # The middles of the new cells are at -1/4, 1/4, 3/4 and 5/4 of the old distance.
    assert joined[0].tolist() == [0.0, 1.0, 3.0, 4.0]
    assert joined[:, 0].tolist() == [0.0, 2.0, 6.0, 8.0]


@pytest.mark.parametrize(("given", "side"), [(10, 7), (37, 14), (5, 7), (14, 16)])
def test_sums_are_those_of_float32_rounded_once(given: int, side: int) -> None:
    part = embeddings(3, given, 37)
    grid = part.float().transpose(1, 2).reshape(3, 37, given, given)
    if given > side:
        made = torch.nn.functional.adaptive_avg_pool2d(grid, side)
    else:
        made = torch.nn.functional.interpolate(grid, (side, side), mode="bilinear")
    expected = made.flatten(2).transpose(1, 2).half()
    joined = join([part, embeddings(3, side, 1)], side * side)[..., :37]
    assert (joined != expected).float().mean() < 1e-3  # another order of adding may round once more
    torch.testing.assert_close(joined, expected, rtol=2e-3, atol=1e-3)


@pytest.mark.parametrize("side", [3, 5, 7, 11])
def test_an_image_alone_has_the_bits_it_has_among_others(side: int) -> None:
    first, second = embeddings(9, 5, 48), embeddings(9, 10, 20, seed=1)
    together = join([first, second], side * side)
    for number in range(9):
        alone = join([first[number : number + 1], second[number : number + 1]], side * side)
        assert torch.equal(alone[0], together[number])


def test_one_encoder_gives_what_the_feature_store_holds_of_it(tmp_path: Path) -> None:
    encoder = encoder_of("test_efficientnet", tmp_path)
    alone = JoinedEncoders(tmp_path, [-1], 25, "cpu")
    expected = encoder.encode_images(images()).patches.half().float()
    assert torch.equal(alone.encode(images()), expected)


def test_two_encoders_see_an_image_each_at_its_own_layer(tmp_path: Path) -> None:
    encoder_of("test_efficientnet", tmp_path)
    (tmp_path / "other").mkdir()
    encoder_of("test_vit", tmp_path / "other")
    (tmp_path / "other" / "clip").rename(tmp_path / "second")
    both = JoinedEncoders(tmp_path, [-2, -1], 100, "cpu").encode(images())
    assert both.shape == (3, 100, 48 + 64)
    for folder, layer, part in (("clip", -2, both[..., :48]), ("second", -1, both[..., 48:])):
        alone = PatchEncoder(tmp_path / folder, layer).encode_images(images()).patches
        assert torch.equal(part, alone.half().float())
