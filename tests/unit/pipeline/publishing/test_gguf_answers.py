"""llama.cpp gives the answers of `ask` about an assistant that was exported as GGUF.

This needs an interpreter with llama-cpp-python, tried with 0.3.36: `PHIVISION_LLAMA_CPP` names it.
It is in no lock file of ours, because it is compiled when it is installed.
"""

import io
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize
from transformers import CLIPVisionModel

from model.asked import asked_ids
from model.assistant import Assistant, load_assistant
from model.llava import vision_config, vision_weights
from model.vlm import word_scores
from tests.support.gguf_export import KINDS, export_gguf
from tests.support.llava_bundle import images, write_llava_bundle

LLAMA_CPP = os.environ.get("PHIVISION_LLAMA_CPP", "")
ANSWERS = Path(__file__).parents[3] / "support" / "llama_cpp_answers.py"
COUNT = 20


def _first_scores(assistant: Assistant, patches: Tensor | None, question: str) -> np.ndarray:
    """Return the scores of an answer's first word, in one pass without a cache."""
    vlm = assistant.vlm
    with torch.no_grad():
        if patches is None:
            seen = vlm.vision_prefix.separator[None, None]
        else:
            seen = vlm.embed_images(patches[None]).tokens
        ids = asked_ids(assistant.template, question, (), 1, 1000)
        states = vlm.hidden(torch.cat([seen, vlm.embed_text(torch.tensor([ids]))], dim=1))
        return word_scores(vlm.language_model, states[0, -1]).numpy()


def _misplaced(bundle: Path, assistant: Assistant, photo: bytes) -> Tensor:
    """Return the patches that llama.cpp computes while its issue 25814 is open.

    The class token is behind the patches, so that each has the position of another, and the row
    that is left out is the first patch.
    """
    tower: Any = CLIPVisionModel(vision_config(bundle / "clip")).eval()
    weights = vision_weights(bundle / "clip")
    rolled = weights["embeddings.position_embedding.weight"].roll(1, 0)
    tower.load_state_dict(weights | {"embeddings.position_embedding.weight": rolled}, strict=True)
    image = Image.open(io.BytesIO(photo)).convert("RGB")
    with torch.no_grad():
        pixels = assistant.encoders.first.prepare(image)[None]
        states = tower(pixels, output_hidden_states=True).hidden_states[assistant.card["layer"]]
    return torch.cat([states[0, 2:], states[0, :1]])


@pytest.mark.skipif(not LLAMA_CPP, reason="PHIVISION_LLAMA_CPP names no interpreter")
@pytest.mark.parametrize("kind", KINDS)
def test_llama_cpp_answers_as_ask_does_or_with_its_misplaced_class_token(
    tmp_path: Path, kind: str
) -> None:
    bundle = write_llava_bundle(tmp_path / "bundle", **KINDS[kind])
    exported, photos = export_gguf(tmp_path, bundle), tmp_path / "photos"
    photos.mkdir()
    as_trained = Compose([Resize(56, InterpolationMode.BICUBIC), CenterCrop(56)])
    for number, data in enumerate(images(COUNT)):
        as_trained(Image.open(io.BytesIO(data))).save(photos / f"{number:02}.png")
    arguments = ["model.gguf", "mmproj.gguf", str(photos), "12", str(tmp_path / "answers.npz")]
    done = subprocess.run(
        [LLAMA_CPP, str(ANSWERS), *arguments],
        cwd=exported,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        env={n: v for n, v in os.environ.items() if n != "PYTHONPATH"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    made, assistant = np.load(tmp_path / "answers.npz"), load_assistant(bundle)
    words = assistant.template.tokenizer.get_vocab_size()
    answers = [assistant.template.decode(ids[ids >= 0]) for ids in made["answers"][:COUNT]]
    theirs = made["first"][:, :words]
    # Of words alone, only Phi's GELU is approximated.
    blind = _first_scores(assistant, None, "What is red?")[:words]
    assert np.abs(blind - theirs[COUNT]).max() < (0.02 * theirs.std() if "phi" in kind else 1e-3)
    asked = [f"What is in image {number:02}?" for number in range(COUNT)]
    shown = [photo.read_bytes() for photo in sorted(photos.iterdir())]
    seen = [assistant.see(photo) for photo in shown]
    first = _first_scores(assistant, seen[0], asked[0])[:words]
    in_place = np.abs(first - theirs[0]).max() < 0.02 * theirs.std()
    if not in_place:
        seen = [_misplaced(bundle, assistant, photo) for photo in shown]
    expected = [assistant.ask([s], q) for s, q in zip(seen, asked, strict=True)]
    ours = [_first_scores(assistant, s, q)[:words] for s, q in zip(seen, asked, strict=True)]
    apart = np.abs(np.array(ours) - theirs[:COUNT]).max()
    same = sum(a == b for a, b in zip(answers, expected, strict=True))
    print(f"{kind}: the class token is {'in its place' if in_place else 'misplaced'}, {same} of")
    print(f"{COUNT} answers, scores {apart:.4f} apart of a deviation of {theirs.std():.2f}")
    assert apart < 0.02 * theirs.std()
    assert same >= COUNT - 1, (answers, expected)
    assert len(set(expected)) > COUNT // 4  # the image decides
