"""Where a model looked: patches that matter by construction, and words and places told right."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from model.assistant import Assistant, load_assistant
from model.errors import ModelError
from model.explanation import by_word, explain
from model.importance import importance_map, importance_maps, neutral_patch
from model.patch_grid import View, place
from model.view import view_of
from model.vlm import VisionLanguageModel
from tests.support.shown_images import nats_by_hand
from tests.support.tiny_bundle import image

PATCHES, VISION = 49, 32
PROMPT, ANSWER = [44, 50, 70], [71, 75, 80]  # letters, which the tiny model may write


@pytest.fixture(scope="module")
def sighted(tiny_bundle: Path) -> Assistant:
    """An assistant of our own whose answers hang on the image more than others' do."""
    assistant = load_assistant(tiny_bundle)
    torch.manual_seed(6)
    with torch.no_grad():
        for parameter in assistant.vlm.vision_prefix.parameters():
            parameter.normal_(0, 0.5)
    return assistant


@pytest.fixture
def patches() -> Tensor:
    return torch.randn(PATCHES, VISION, generator=torch.Generator().manual_seed(3))


class OnePatch(torch.nn.Module):
    """A projector that lets one patch through: whatever is said can only hang on that one."""

    def __init__(self, inner: torch.nn.Module, patch: int) -> None:
        super().__init__()
        self.inner, self.patch = inner, patch

    def forward(self, patches: Tensor) -> object:
        only = torch.zeros_like(patches)
        only[:, self.patch] = patches[:, self.patch]
        return self.inner(only)


@pytest.mark.parametrize("patch", [0, 17, 48])
def test_the_patch_on_which_the_answer_hangs_is_on_top(
    tiny_bundle: Path, patches: Tensor, patch: int
) -> None:
    vlm = load_assistant(tiny_bundle).vlm
    vlm.vision_prefix.projector = OnePatch(vlm.vision_prefix.projector, patch)
    with torch.no_grad():
        for parameter in vlm.vision_prefix.parameters():
            parameter.normal_(0, 0.5, generator=torch.Generator().manual_seed(2))
    best = answer_that_needs(vlm, patches)
    found = importance_map(vlm, patches, PROMPT, [best])
    assert found.shape == (1, PATCHES)
    assert int(found[0].argmax()) == patch
    assert found[0, patch] > 0.003
    others = np.delete(found[0].numpy(), patch)
    assert np.abs(others).max() < 1e-4


def answer_that_needs(vlm: VisionLanguageModel, patches: Tensor) -> int:
    """Return the token that the image makes likelier than the neutral patches do."""
    neutral = neutral_patch(vlm, patches).expand_as(patches)
    logits = []
    for shown in (patches, neutral):
        with torch.no_grad():
            joint = torch.cat(
                [vlm.embed_images(shown[None]).tokens, vlm.embed_text(torch.tensor([PROMPT]))], 1
            )
            logits.append(vlm.logits(vlm.hidden(joint))[0, -1].log_softmax(-1))
    gain = (logits[0] - logits[1]).masked_fill(logits[0] < -12, 0)
    return int(gain.argmax())


def test_a_map_is_the_fall_of_the_log_probability(sighted: Assistant, patches: Tensor) -> None:
    vlm = sighted.vlm
    found = importance_map(vlm, patches, PROMPT, ANSWER)
    assert found.dtype == torch.float32
    assert found.shape == (len(ANSWER), PATCHES)
    ids = [*PROMPT, *ANSWER]
    whole = nats_by_hand(vlm, patches, ids)[len(PROMPT) :]
    for patch in (0, 30):
        hidden = patches.clone()
        hidden[patch] = neutral_patch(vlm, patches)
        fall = nats_by_hand(vlm, hidden, ids)[len(PROMPT) :] - whole
        torch.testing.assert_close(found[:, patch].double(), fall, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("batch", [1, 7, 1000])
def test_the_batch_changes_nothing_but_rounding(
    sighted: Assistant, patches: Tensor, batch: int
) -> None:
    found = importance_map(sighted.vlm, patches.half(), PROMPT, ANSWER, batch)
    torch.testing.assert_close(
        found, importance_map(sighted.vlm, patches.half(), PROMPT, ANSWER), atol=1e-4, rtol=1e-3
    )


def test_texts_that_share_an_image_have_the_maps_that_each_has_alone(
    sighted: Assistant, patches: Tensor
) -> None:
    texts = [(PROMPT, ANSWER), ([], [72, 79]), ([4], [70])]
    together = importance_maps(sighted.vlm, patches, texts)
    for (prompt, answer), found in zip(texts, together, strict=True):
        alone = importance_map(sighted.vlm, patches, prompt, answer)
        torch.testing.assert_close(found, alone, atol=1e-4, rtol=1e-3)


def test_a_model_in_training_is_left_in_training(sighted: Assistant, patches: Tensor) -> None:
    sighted.vlm.train()
    importance_map(sighted.vlm, patches, PROMPT, ANSWER)
    assert sighted.vlm.training
    sighted.vlm.eval()


def test_a_hidden_patch_is_the_mean_of_training_or_else_of_the_image(
    sighted: Assistant, patches: Tensor
) -> None:
    prefix = sighted.vlm.vision_prefix
    before = prefix.patch_mean.clone()
    assert not before.any()
    torch.testing.assert_close(neutral_patch(sighted.vlm, patches), patches.mean(dim=0))
    try:
        prefix.patch_mean.fill_(0.25)
        assert neutral_patch(sighted.vlm, patches).tolist() == [0.25] * VISION
    finally:
        prefix.patch_mean.copy_(before)


@pytest.mark.parametrize("count", [0, 2, 48, 50])
def test_patches_that_form_no_square_are_refused(
    sighted: Assistant, patches: Tensor, count: int
) -> None:
    with pytest.raises(ModelError, match=f"{count} patches form no square grid"):
        importance_map(sighted.vlm, torch.zeros(count, VISION), PROMPT, ANSWER)


@pytest.mark.parametrize("texts", [[], [(PROMPT, [])], [(PROMPT, ANSWER), ([], [])]])
def test_no_answer_has_no_map(sighted: Assistant, patches: Tensor, texts: list) -> None:
    with pytest.raises(ModelError, match="an answer is empty"):
        importance_maps(sighted.vlm, patches, texts)


def test_an_answer_that_is_too_long_is_refused(sighted: Assistant, patches: Tensor) -> None:
    with pytest.raises(ModelError, match="positions"):
        importance_map(sighted.vlm, patches, PROMPT, [71] * 300)


# -- words and places --------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["What colour is it?", " Red, green or blue.", "naïve Wörter 图"])
def test_tokens_add_up_to_words(sighted: Assistant, text: str) -> None:
    ids = sighted.template.encode(text)
    tokens = torch.rand(len(ids), 4)
    words, maps = by_word(sighted.template, ids, tokens)
    assert words == text.split()
    assert maps.shape == (len(words), 4)
    np.testing.assert_allclose(maps.sum(axis=0), tokens.sum(dim=0).numpy(), rtol=1e-5)
    first = sighted.template.encode(text.split()[0])
    if ids[: len(first)] == first:
        np.testing.assert_allclose(maps[0], tokens[: len(first)].sum(dim=0).numpy(), rtol=1e-5)


def test_places_are_counted_from_one() -> None:
    values = np.zeros(49, np.float32)
    values[7 * 1 + 2] = 1
    assert place(values) == "row 2, column 3"


def test_an_assistant_explains_its_own_answer(sighted: Assistant) -> None:
    answer = sighted.ask(image(), "What colour?")
    found = explain(sighted, image(), "What colour?", answer)
    assert found.words == answer.split()
    assert found.maps.shape == (len(found.words), PATCHES)
    assert found.view == View(16, 0, 64, 64)  # the middle of 96 by 64 pixels
    caption = sighted.caption([image()])[0]
    assert explain(sighted, image(), None, caption).words == caption.split()
    with pytest.raises(ModelError, match="no word"):
        explain(sighted, image(), "What colour?", "  ")


# -- what an encoder sees ----------------------------------------------------------------------


def transforms() -> dict[str, object]:
    """The ways in which open_clip and timm prepare an image for evaluation."""
    from open_clip.transform import image_transform
    from timm.data.transforms_factory import transforms_imagenet_eval

    clip = {
        f"open_clip {mode} {size}": image_transform(size, is_train=False, resize_mode=mode)
        for mode in ("shortest", "longest", "squash")
        for size in (56, (56, 84))
    }
    timm = {
        f"timm {mode}": transforms_imagenet_eval(56, crop_pct=0.875, crop_mode=mode)
        for mode in ("center", "squash", "border")
    }
    return clip | timm


@pytest.mark.parametrize("name", list(transforms()))
@pytest.mark.parametrize(("width", "height"), [(300, 200), (201, 333), (128, 128), (90, 400)])
def test_the_view_is_what_the_transform_shows(name: str, width: int, height: int) -> None:
    preprocess = transforms()[name]
    view = view_of(preprocess, width, height)
    for axis, start, length, size in (
        (2, view.left, view.width, width),
        (1, view.top, view.height, height),
    ):
        # A white half of the image begins where the view says.
        middle = size // 2
        pixels = np.zeros((height, width, 3), np.uint8)
        pixels[(slice(None), slice(middle, None)) if axis == 2 else slice(middle, None)] = 255
        made = preprocess(Image.fromarray(pixels))
        line = made[0].mean(dim=1 if axis == 1 else 0)
        side = made.shape[axis]
        bright = line > (line.max() + line.min()) / 2
        first = int(torch.nonzero(bright)[0])
        assert first == pytest.approx((middle - start) / length * side, abs=1.5)
        seen = [start + length * at for at in (0, 1)]
        if seen[0] < -length / side:  # padding: there is something before the image
            edge = view_edge(preprocess, width, height, axis)
            assert edge == pytest.approx(-start / length * side, abs=1.5)


def view_edge(preprocess: object, width: int, height: int, axis: int) -> int:
    """Return the first place of a white image along an axis, behind what was padded."""
    made = preprocess(Image.new("RGB", (width, height), "white"))  # ty: ignore
    line = made[0].mean(dim=1 if axis == 1 else 0)
    return int((line > (line.max() + line.min()) / 2).nonzero()[0])


def test_a_step_that_moves_patches_in_another_way_is_refused() -> None:
    from torchvision.transforms import Compose, Pad, RandomResizedCrop

    for step in (Pad(3), RandomResizedCrop(56)):
        with pytest.raises(ModelError, match="patches cannot be located"):
            view_of(Compose([step]), 100, 100)


def test_a_view_knows_whether_it_covers_the_image() -> None:
    assert View(0, 0, 96, 64).covers(96, 64)
    assert View(0, -16, 96, 96).covers(96, 64)
    assert not View(16, 0, 64, 64).covers(96, 64)
