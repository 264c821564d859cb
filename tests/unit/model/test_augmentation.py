"""Images varied in training: mirrored grids and dropped patches."""

import pytest
import torch

from model.augmentation import augmented
from model.augmentation_configs import AugmentationConfig
from model.errors import ModelError

ROWS, SIDE, WIDTH = 40, 3, 4
MEAN = torch.full((WIDTH,), 7.0)


def patches() -> torch.Tensor:
    return torch.arange(ROWS * SIDE**2 * WIDTH, dtype=torch.float32).view(ROWS, SIDE**2, WIDTH)


def varied(seed: int = 0, **shares: float) -> torch.Tensor:
    config = AugmentationConfig(**{"mirrored": 0.0, "dropped": 0.0, **shares})
    return augmented(patches(), config, MEAN, torch.Generator().manual_seed(seed))


def test_without_shares_nothing_is_drawn_or_changed() -> None:
    generator = torch.Generator().manual_seed(3)
    given = patches()
    config = AugmentationConfig(mirrored=0.0, dropped=0.0)
    assert augmented(given, config, MEAN, generator) is given
    fresh = torch.Generator().manual_seed(3)
    assert torch.equal(torch.rand(2, generator=generator), torch.rand(2, generator=fresh))


def test_a_mirrored_grid_has_left_and_right_exchanged() -> None:
    given, found = patches(), varied(mirrored=1.0)
    grid, mirrored = (each.view(ROWS, SIDE, SIDE, WIDTH) for each in (given, found))
    for column in range(SIDE):
        assert torch.equal(mirrored[:, :, column], grid[:, :, SIDE - 1 - column])


def test_about_the_share_of_the_rows_is_mirrored_and_the_others_stay() -> None:
    given, found = patches(), varied(mirrored=0.5)
    same = (found == given).all(dim=2).all(dim=1)
    assert 8 <= int(same.sum()) <= 32
    assert torch.equal(found[~same], varied(mirrored=1.0)[~same])


def test_about_the_share_of_the_patches_becomes_the_mean() -> None:
    found = varied(dropped=0.2)
    lost = (found == MEAN).all(dim=2)
    assert 0.1 < lost.float().mean() < 0.3
    assert torch.equal(found[~lost], patches()[~lost])


def test_the_same_draws_give_the_same_batch_and_others_another() -> None:
    assert torch.equal(varied(1, mirrored=0.5, dropped=0.1), varied(1, mirrored=0.5, dropped=0.1))
    assert not torch.equal(varied(1, dropped=0.1), varied(2, dropped=0.1))


def test_the_type_of_the_embeddings_stays() -> None:
    config = AugmentationConfig(mirrored=0.5, dropped=0.5)
    found = augmented(patches().half(), config, MEAN, torch.Generator().manual_seed(0))
    assert found.dtype == torch.float16


def test_a_grid_that_is_not_square_is_refused() -> None:
    config = AugmentationConfig(mirrored=0.5, dropped=0.0)
    with pytest.raises(ModelError, match="8 patches are not a square"):
        augmented(patches()[:, :8], config, MEAN, torch.Generator())
