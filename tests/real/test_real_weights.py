"""What only real weights show: the encoder names the cats, and templates are the model's own.

`make realweights` fetches the weights into `.weights` and runs every test with this mark.
"""

import json
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from model.chat_template import chat_pieces
from model.gguf_model import write_gguf_model
from model.prompt import PromptTemplate
from model.timm_encoder import TimmTower
from model.word_tokenizer import WordTokenizer, splits_at_blanks
from tests.real.test_photos_realdata import WEIGHTS
from tests.unit.model.test_chat_template import CONVERSATION, by_transformers

pytestmark = [
    pytest.mark.realweights,
    pytest.mark.skipif(not WEIGHTS.is_dir(), reason="no .weights: make realweights fetches them"),
]
CATS = {281: "tabby", 282: "tiger cat", 285: "Egyptian cat"}  # of ImageNet's 1,000 classes


def test_the_encoder_calls_the_two_cats_tabby(realdata: Path) -> None:
    """The pooled features, prepared as our tower prepares images, behind the package's classifier.

    The order of 296 tensors was mapped by hand; a wrong one would give noise.
    """
    folder = WEIGHTS / "tf_efficientnet_lite0"
    tower = TimmTower(folder, -1, "cpu")
    image = Image.open(realdata / "clip" / "coco_val2017_000000039769.png").convert("RGB")
    patches, pooled = tower.encode(tower.preprocess(image)[None])
    assert patches.shape == (1, 49, 1280)
    weights = load_file(folder / "model.safetensors")
    scores = pooled @ weights["classifier.weight"].T + weights["classifier.bias"]
    best = scores[0].topk(3).indices.tolist()
    assert best[0] == 281
    assert set(best) <= set(CATS)


def test_the_tower_is_timms_own_model(realdata: Path) -> None:
    folder = WEIGHTS / "tf_efficientnet_lite0"
    tower = TimmTower(folder, -1, "cpu")
    theirs = timm.create_model("tf_efficientnet_lite0").eval()
    theirs.load_state_dict(load_file(folder / "model.safetensors"))
    image = Image.open(realdata / "clip" / "CLIP.png").convert("RGB")
    pixels = tower.preprocess(image)[None]
    with torch.no_grad():
        expected = theirs.forward_features(pixels).flatten(2).transpose(1, 2)
    torch.testing.assert_close(tower.encode(pixels)[0], expected, rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, PreTrainedTokenizerBase]:
    """SmolLM2's folder out of its GGUF file, and transformers' own tokenizer of it."""
    folder = tmp_path_factory.mktemp("smollm2")
    written = write_gguf_model(next(WEIGHTS.glob("SmolLM2*.gguf")), folder, "SmolLM2")
    assert written == 134_515_008
    return folder, AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_conversations_are_those_of_smollm2s_own_template(
    smollm2: tuple[Path, PreTrainedTokenizerBase], turns: int
) -> None:
    folder, theirs = smollm2
    pieces = chat_pieces(folder)
    assert pieces is not None
    assert json.dumps(pieces.opening).startswith('"<|im_start|>system')
    template = PromptTemplate.load(folder, user_prefix="", **vars(pieces))
    ours = template.conversation(CONVERSATION[:turns])
    expected = by_transformers(theirs, CONVERSATION[:turns])
    assert ours.input_ids == expected[: len(ours)]
    assert len(expected) - len(ours) <= 1  # the line break before another turn
    asked = template.question("is it cold?", CONVERSATION[:turns])
    assert asked == by_transformers(theirs, CONVERSATION[:turns], "is it cold?")


def test_smollm2_is_tokenized_word_by_word(
    smollm2: tuple[Path, PreTrainedTokenizerBase],
) -> None:
    tokenizer = PromptTemplate.load(smollm2[0], 0, "", "").tokenizer
    assert splits_at_blanks(tokenizer)
    words = WordTokenizer(tokenizer)
    for path in (*Path("docs").glob("*.md"), Path("README.md")):
        for text in path.read_text("utf-8").split("\n\n"):
            ids = words.encode(text, add_special_tokens=False).ids
            assert ids == tokenizer.encode(text, add_special_tokens=False).ids
