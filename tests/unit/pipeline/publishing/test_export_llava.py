"""Exports as a LLaVA: transformers alone gives the answers of `ask`; misfits are refused."""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard

from flows.commands.export import export_to
from model.asked import asked_ids
from model.assistant import Assistant, load_assistant
from model.errors import ModelError
from model.llava_processor import SEPARATOR, build_processor, check_ids, messages
from model.projectors import LinearConfig
from pipeline.errors import PipelineError
from pipeline.publishing.export_obstacles import obstacles_of_recipe, plan_line
from pipeline.recipe.presets import preset
from pipeline.settings import Settings
from storage.store.artifacts import ArtifactStore
from tests.support.llava_bundle import images, publish_bundle, write_llava_bundle
from tests.support.tiny_bundle import MIXTURE, publish_tiny

COUNT = 50
# Run where phivision is not on the path. It prints the answers, then of how many images the
# processor alone makes other pixels.
ASK = """
import importlib.util
import json
import sys
from pathlib import Path

from PIL import Image
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize
from transformers import AutoModelForImageTextToText, AutoProcessor

assert not any(map(importlib.util.find_spec, ("model", "pipeline", "flows")))
photos = sorted(Path(sys.argv[1]).iterdir())
as_trained = Compose([Resize(56, InterpolationMode.BICUBIC), CenterCrop(56)])


def prepared(processor, image, question):
    shown = {"type": "image", "image": image}
    asked = {"type": "text", "text": question}
    return processor.apply_chat_template(
        [{"role": "user", "content": [shown, asked]}],
        tokenize=True, return_dict=True, return_tensors="pt",
    )


for folder in sys.argv[2:]:
    model = AutoModelForImageTextToText.from_pretrained(folder)
    processor = AutoProcessor.from_pretrained(folder)
    answers, moved = [], 0
    for photo in photos:
        image = Image.open(photo)
        inputs = prepared(processor, as_trained(image), f"What is in image {photo.stem}?")
        whole = prepared(processor, image, "")["pixel_values"]
        moved += (whole - inputs["pixel_values"]).abs().mean().item() > 0.02
        answer = model.generate(**inputs)[0, inputs["input_ids"].shape[1]:]
        answers.append(processor.decode(answer, skip_special_tokens=True).strip())
    print(json.dumps([type(model).__name__, answers, moved]))
"""

TEXT_ALONE = """
import sys
from transformers import AutoModelForImageTextToText, AutoProcessor

model = AutoModelForImageTextToText.from_pretrained(sys.argv[1])
processor = AutoProcessor.from_pretrained(sys.argv[1])
inputs = processor.apply_chat_template(
    [{"role": "user", "content": [{"type": "text", "text": "What is red?"}]}],
    tokenize=True, return_dict=True, return_tensors="pt",
)
answer = model.generate(**inputs)[0, inputs["input_ids"].shape[1]:]
print(ascii(processor.decode(answer, skip_special_tokens=True).strip()))
"""
(PHOTO,) = images(1, seed=7)


def _export(root: Path, bundle: Path, **changes: Any) -> Path:
    settings = Settings(store=str(root / "store"), device="cpu")
    store = ArtifactStore(settings.store, settings.work / "cache")
    publish_bundle(store, bundle, root / "work", **changes)
    export_to(settings, str(root / "out"), "merged", 0, public=False, style="llava")
    return root / "out"


START = """
import contextlib, io, json, runpy, sys

# -S would leave out torch; an editable install would bring phivision in through a finder.
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in repr(finder)]
for path, *arguments in json.loads(sys.argv[1]):
    sys.argv = [path, *arguments]
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        runpy.run_path(path, {}, "m")
    print(json.dumps(printed.getvalue()))
"""


def _alone(place: Path, *programs: tuple[str, ...]) -> list[str]:
    """Run programs in one new process that cannot import phivision, and return their outputs.

    Args:
        place: The folder in which they run.
        programs: Code and arguments of each; loading transformers for each would take longest.
    """
    commands = []
    for number, (code, *arguments) in enumerate(programs):
        (place / f"code{number}.py").write_text(code)
        commands.append([f"code{number}.py", *arguments])
    done = subprocess.run(
        [sys.executable, "-I", "-c", START, json.dumps(commands)],
        cwd=place,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


KINDS: dict[str, dict[str, Any]] = {
    "llama, tied": {"family": "llama", "tied": True},
    "qwen2, untied": {
        "family": "qwen2",
        "tied": False,
        "unused": 5,  # as Qwen's, whose new tokens need no new rows
        "layer": -2,
        "projector": LinearConfig(),
        "opening": "<|endoftext|>You see images.\n",
        "between": "\n",
    },
    "qwen3, tied": {"family": "qwen3", "tied": True, "unused": 1},
    "phi3": {"family": "phi3", "tied": False},
    "mistral": {"family": "mistral", "tied": False},
}


@pytest.fixture(scope="module")
def shown() -> list[bytes]:
    return images(COUNT)


@dataclass(frozen=True)
class Answered:
    """What one process without phivision says of exports.

    Attributes:
        kinds: The bundle of each kind, and the lines of `ASK` about its export.
        text: A bundle that may be asked without an image, and the answer of its export.
        card: A bundle, its export, and what the code of the export's card prints.
    """

    kinds: dict[str, tuple[Path, Any]]
    text: tuple[Path, str]
    card: tuple[Path, Path, str]


@pytest.fixture(scope="module")
def answered(shown: list[bytes], tmp_path_factory: pytest.TempPathFactory) -> Answered:
    root = tmp_path_factory.mktemp("answered")
    bundles = {
        kind: write_llava_bundle(root / str(number) / "bundle", **choices)
        for number, (kind, choices) in enumerate(KINDS.items())
    }
    exported = [str(_export(bundle.parent, bundle)) for bundle in bundles.values()]
    photos = root / "photos"
    photos.mkdir()
    for number, data in enumerate(shown):
        (photos / f"{number:02}.png").write_bytes(data)
    text, card = (write_llava_bundle(root / name / "bundle") for name in ("text", "card"))
    known = json.loads((text / "bundle.json").read_text())
    (text / "bundle.json").write_text(json.dumps(known | {"text_only": True}))
    page = _export(card.parent, card)
    (root / "photo.jpg").write_bytes(PHOTO)
    asked, said, shows = _alone(
        root,
        (ASK, str(photos), *exported),
        (TEXT_ALONE, str(_export(text.parent, text))),
        (code_of(page).replace("OWNER/NAME", str(page)),),
    )
    lines = [json.loads(line) for line in asked.splitlines()]
    kinds = dict(zip(bundles, zip(bundles.values(), lines, strict=True), strict=True))
    return Answered(kinds, (text, said.strip()), (card, page, shows.strip()))


def code_of(exported: Path) -> str:
    """Return the code that an export's card shows."""
    text = ModelCard.load(exported / "README.md").text
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    return code


@pytest.mark.parametrize("kind", KINDS)
def test_fifty_answers_by_transformers_alone_are_those_of_ask(
    kind: str, answered: Answered, shown: list[bytes]
) -> None:
    bundle, (name, answers, moved) = answered.kinds[kind]
    assistant = load_assistant(bundle)
    expected = [assistant.ask(data, f"What is in image {n:02}?") for n, data in enumerate(shown)]
    assert name == "LlavaForConditionalGeneration"
    assert answers == expected
    assert len(set(expected)) > COUNT // 4  # the image decides
    assert 0 < moved < COUNT // 2


def test_the_processor_writes_the_ids_of_training(tmp_path: Path) -> None:
    bundle = write_llava_bundle(
        tmp_path / "bundle", opening="<|endoftext|>You see.\n", between="\n"
    )
    template = Assistant(bundle).template
    processor, tokens = build_processor(bundle, template)
    history = [("What is\n this?", "A dog."), ("How many?", "2 of them")]
    one, two = torch.zeros(3, 60, 90, dtype=torch.uint8), torch.ones(3, 70, 60, dtype=torch.uint8)
    for turns in range(3):
        for shown in ([one], [one, two]):
            text = processor.apply_chat_template(
                messages("Which  colour?", history[:turns], len(shown)), tokenize=False
            )
            found = processor(images=shown, text=text).input_ids[0]
            ours = asked_ids(template, "Which  colour?", history[:turns], 1, 1000)
            assert found == ([tokens.image] * 49 + [tokens.separator]) * len(shown) + ours
    alone = [{"role": "user", "content": "Which  colour?"}]
    text = processor.apply_chat_template(alone, tokenize=False)
    assert processor.tokenizer(text).input_ids == [
        tokens.separator,
        *asked_ids(template, "Which  colour?", (), 1, 1000),
    ]


def test_a_tokenizer_that_splits_differently_after_control_tokens_is_refused(
    tmp_path: Path,
) -> None:
    bundle = write_llava_bundle(tmp_path / "bundle")
    path = bundle / "lm" / "tokenizer.json"
    stated = json.loads(path.read_text())
    stated["normalizer"] = {"type": "Prepend", "prepend": "!"}  # like Llama 2's blank
    path.write_text(json.dumps(stated))
    template = Assistant(bundle).template
    processor, tokens = build_processor(bundle, template)
    template.tokenizer.normalizer = None
    with pytest.raises(ModelError, match="splits a text after a control token"):
        check_ids(processor, tokens, template)


def test_the_text_alone_is_an_ordinary_conversation(answered: Answered) -> None:
    bundle, said = answered.text
    assert said == ascii(load_assistant(bundle).ask(None, "What is red?"))


def test_the_card_shows_code_that_gives_the_answer_of_ask(answered: Answered) -> None:
    bundle, exported, printed = answered.card
    assert "phivision" not in code_of(exported)
    assert printed == load_assistant(bundle).ask(PHOTO, "What is in the image?")
    card = ModelCard.load(exported / "README.md")
    assert card.data.pipeline_tag == "image-text-to-text"
    assert (exported / "provenance.json").is_file()
    assert SEPARATOR in (exported / "chat_template.jinja").read_text()


def test_a_bfloat16_language_model_keeps_its_weights_and_computes_in_float32(
    tmp_path: Path,
) -> None:
    from safetensors import safe_open
    from transformers import AutoModelForImageTextToText

    exported = _export(tmp_path, write_llava_bundle(tmp_path / "bundle", dtype=torch.bfloat16))
    with safe_open(exported / "model.safetensors", "pt") as stored:
        kinds = {n: stored.get_slice(n).get_dtype() for n in stored.keys()}  # noqa: SIM118
    assert {k for n, k in kinds.items() if "language_model" in n} == {"BF16"}
    assert {k for n, k in kinds.items() if "language_model" not in n} == {"F32"}
    loaded = AutoModelForImageTextToText.from_pretrained(exported)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}


def _refusal(root: Path, bundle: Path, **changes: Any) -> str:
    with pytest.raises(PipelineError) as refused:
        _export(root, bundle, **changes)
    assert not (root / "out").exists()
    return str(refused.value)


def test_what_does_not_fit_is_refused_with_the_field_to_change(tmp_path: Path) -> None:
    bundle = write_llava_bundle(tmp_path / "mixture", projector=MIXTURE)
    shutil.copytree(bundle / "clip", bundle / "second")
    clip = json.loads((bundle / "clip" / "open_clip_config.json").read_text())
    clip["model_cfg"]["vision_cfg"]["ls_init_value"] = 0.1
    (bundle / "clip" / "open_clip_config.json").write_text(json.dumps(clip))
    said = _refusal(tmp_path / "one", bundle, second_name="ViT-B-16")
    for words in (
        "pretrain.projector.kind is mixture",
        "choose mlp2x_gelu or linear",
        'backbones.second_name is ViT-B-16, and LLaVA has one encoder: set it to ""',
        "backbones.clip_name: its tower has ls_init_value",
    ):
        assert words in said
    assert "lm_repository" not in said


def test_phi_is_refused_and_adapters_beside_too(tmp_path: Path) -> None:
    settings = Settings(store=str(tmp_path / "store"), device="cpu")
    publish_tiny(ArtifactStore(settings.store, settings.work / "cache"), tmp_path / "made")
    out = tmp_path / "out"
    with pytest.raises(PipelineError, match=r"backbones.kind is tiny.*output layer has a bias"):
        export_to(settings, str(out), "merged", 0, public=False, style="llava")
    with pytest.raises(PipelineError, match="--lora merged"):
        export_to(settings, str(out), "beside", 0, public=False, style="llava")
    assert not out.exists()


def test_plan_says_before_training_what_to_change() -> None:
    fits = {"pretrain.projector": {"kind": "mlp2x_gelu"}}
    small = preset("small").override(fits)
    assert obstacles_of_recipe(small, "llava") == []
    assert plan_line(small, "llava") == "export --format llava: possible"
    other = small.override({"backbones.lm_repository": "somebody/model"})
    assert "possible, if the language model is llama" in plan_line(other, "llava")
    coco = preset("coco").override(fits)
    (phi,) = obstacles_of_recipe(coco, "llava")
    assert "backbones.lm_repository is a Phi" in phi
    timm = small.override(
        {
            "backbones.clip_name": "timm/vit_small_patch14_dinov2",
            "backbones.clip_pretrained": "hf://timm/vit_small_patch14_dinov2.lvd142m",
        }
    )
    (encoder,) = obstacles_of_recipe(timm, "llava")
    assert "backbones.clip_name is timm/vit_small" in encoder
    assert "backbones.kind is tiny" in plan_line(preset("demo"), "llava")
