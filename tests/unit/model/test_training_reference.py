"""An image unlike those of the training is answered with a warning, and others mostly without."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flows.cli import main
from model.assistant import load_assistant
from model.training_reference import (
    REFERENCE,
    SHARE,
    TrainingReference,
    load_reference,
    make_reference,
    pool,
)
from pipeline.data.schemas import EXAMPLES
from pipeline.engine.dag import BY_NAME
from pipeline.engine.materialize import payload_of
from pipeline.publishing.trained_images import MOST, reference_of, trained_images
from pipeline.recipe.presets import PRESETS, preset
from storage.tables import write_table
from tests.support.shown_images import key_of, write_images
from tests.support.tiny_bundle import image, texture
from tests.support.training_inputs import files_of

WARNING = "this image is unlike those the model was trained on (discs): the answer may be a guess"


def drawn(count: int, seed: int) -> torch.Tensor:
    """Return patches [image, patch, vision] of images that lie around one direction."""
    random = torch.Generator().manual_seed(seed)
    return torch.ones(16) + 0.5 * torch.randn(count, 4, 16, generator=random)


def test_one_in_a_hundred_training_images_lies_below_the_threshold() -> None:
    pooled = pool(drawn(1000, 0))
    reference = make_reference(pooled, "things")
    others = pooled @ pooled.T - 3 * torch.eye(1000)
    below = (others.max(dim=1).values < reference.least_similarity).sum()
    assert below.item() == pytest.approx(1000 * SHARE, abs=1)  # which float16 may move by one


def test_a_far_image_is_warned_about_and_fresh_ones_like_the_training_rarely_are() -> None:
    reference = make_reference(pool(drawn(1000, 0)), "discs")
    fresh = [bool(reference.warning(patches)) for patches in drawn(2000, 1)]
    assert 0.002 < np.mean(fresh) < 0.03
    far = torch.linspace(-1, 1, 16).expand(4, 16)
    assert reference.warning(far) == WARNING
    assert not reference.warning(drawn(1000, 0)[3])


@pytest.mark.parametrize("value", [0.0, torch.nan])
def test_patches_without_a_direction_are_far_from_everything(value: float) -> None:
    assert make_reference(pool(drawn(50, 0)), "discs").warning(torch.full((4, 16), value))


def test_an_image_is_the_mean_of_its_patches_whatever_their_length() -> None:
    patches = torch.tensor([[[3.0, 0.0], [3.0, 8.0]], [[6.0, 0.0], [6.0, 16.0]]])
    assert pool(patches).tolist() == [pytest.approx([0.6, 0.8])] * 2


def test_a_reference_is_read_back_as_it_was_saved(tmp_path: Path) -> None:
    reference = make_reference(pool(drawn(60, 0)), "discs")
    card = {"trained_on": {"what": "discs", **reference.save(tmp_path)}}
    again = load_reference(tmp_path, json.loads(json.dumps(card)))
    assert again is not None
    assert torch.equal(again.pooled, reference.pooled)
    assert again.pooled.dtype == torch.float16
    assert again.least_similarity == reference.least_similarity
    assert card["trained_on"]["compared"] == 60


@pytest.mark.parametrize("card", [{}, {"trained_on": {"what": "discs", "images": 1}}])
def test_a_bundle_without_reference_has_none(card: dict[str, Any], tmp_path: Path) -> None:
    assert load_reference(tmp_path, card) is None


def test_a_strangers_phrase_is_neither_markup_nor_moves_the_cursor(tmp_path: Path) -> None:
    what = "\x1b[2J![x](http://a.b/c)<img src=x> " + "y" * 200
    stated = make_reference(pool(drawn(9, 0)), what).save(tmp_path)
    reference = load_reference(tmp_path, {"trained_on": {"what": what, **stated}})
    assert reference is not None
    assert not set(reference.what) & set("\x1b[]()<>!/:")
    assert len(reference.what) == 80


# -- publishing --------------------------------------------------------------------------------


def write_inputs(folder: Path, splits: list[str]) -> None:
    """Write features of random patches, and two examples about each image."""
    rows: list[dict[str, Any]] = [
        {
            "example_id": 2 * number + place,
            "kind": "caption",
            "source_id": 0,
            "image_id": number,
            "sha256": key_of(number),
            "more_sha256": [],
            "split": split,
            "turns": 1,
            "text": "a disc",
            "input_ids": [1],
            "supervised": [True],
        }
        for number, split in enumerate(splits)
        for place in (0, 1)
    ]
    write_table(folder / "examples/examples.parquet", rows, EXAMPLES)
    patches = drawn(len(splits), 5).half().numpy()
    pooled = np.ones((len(splits), 2), np.float32)
    write_images(folder / "features", patches, pooled, splits)


def referred(folder: Path) -> TrainingReference | None:
    trained = trained_images(files_of(folder / "examples"))
    return reference_of(trained, files_of(folder / "features"), "discs")


def test_training_images_alone_are_kept_each_once(tmp_path: Path) -> None:
    write_inputs(tmp_path, ["train", "test", "train", "validation", "train"])
    reference = referred(tmp_path)
    assert reference is not None
    by_hash = sorted((0, 2, 4), key=key_of)
    expected = pool(drawn(5, 5).half().float())[by_hash].half()
    assert torch.equal(reference.pooled, expected)


def test_no_more_are_kept_than_the_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert MOST <= 2000
    write_inputs(tmp_path, ["train"] * 12)
    monkeypatch.setattr("pipeline.publishing.trained_images.MOST", 5)
    monkeypatch.setattr("pipeline.data.pooled_images._AT_ONCE", 2)
    reference = referred(tmp_path)
    assert reference is not None
    by_hash = sorted(range(12), key=key_of)[:5]
    assert torch.equal(reference.pooled, pool(drawn(12, 5).half().float())[by_hash].half())


def test_one_image_has_nothing_to_be_compared_with(tmp_path: Path) -> None:
    write_inputs(tmp_path, ["train", "test"])
    assert referred(tmp_path) is None


def test_the_phrase_bears_no_identity_and_every_source_has_one() -> None:
    for name in PRESETS:
        recipe = preset(name)
        phrase = recipe.images.source.phrase
        assert phrase
        stage = BY_NAME["publish"]
        payload = payload_of(stage, recipe, dict.fromkeys(stage.inputs, ""))
        assert phrase not in json.dumps(payload, default=str)


# -- commands ----------------------------------------------------------------------------------


@pytest.fixture
def photos(tmp_path: Path) -> tuple[str, str]:
    """A disc and a texture, as files."""
    red, sand = tmp_path / "red.png", tmp_path / "sand.png"
    red.write_bytes(image())
    sand.write_bytes(texture())
    return str(red), str(sand)


def test_captions_warn_once_for_each_far_image_and_are_written_all_the_same(
    wary_bundle: Path, photos: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    red, sand = photos
    main(["caption", red, sand, "--bundle", str(wary_bundle)])
    printed = capsys.readouterr()
    assert [line for line in printed.err.splitlines() if "unlike" in line] == [f"{sand}: {WARNING}"]
    assert [line.partition(": ")[0] for line in printed.out.splitlines()] == [red, sand]


def test_an_answer_is_the_same_with_the_warning(
    wary_bundle: Path,
    tiny_bundle: Path,
    photos: tuple[str, str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    _, sand = photos
    main(["ask", sand, "What?", "--bundle", str(wary_bundle)])
    warned = capsys.readouterr()
    main(["ask", sand, "What?", "--bundle", str(tiny_bundle)])  # made before anything warned
    old = capsys.readouterr()
    assert WARNING in warned.err
    assert "unlike" not in old.err
    assert warned.out == old.out


def test_what_was_seen_is_not_looked_at_again(wary_bundle: Path) -> None:
    assistant = load_assistant(wary_bundle)
    seen = assistant.see(texture())
    expected = assistant.ask(texture(), "What?"), assistant.caption([texture()])
    del assistant.encoders  # no pass of it is left
    assert assistant.warning(seen) == WARNING
    assert (assistant.ask(seen, "What?"), assistant.caption([seen])) == expected
    assert (wary_bundle / REFERENCE).stat().st_size < 10_000
