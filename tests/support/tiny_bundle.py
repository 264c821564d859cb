"""A bundle of random weights in seconds, and a store in which such a one was trained and published.

The language model writes letters only and never ends a text by itself, so that every answer can be
looked for on a page.
"""

import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from safetensors.torch import save_file
from transformers import PhiConfig, PhiForCausalLM

from model.assistant import Assistant
from model.bundle import BUNDLE, FORMAT, PREFIX, PREFIX_CONFIG
from model.encoder import CONFIG, save_clip
from model.language import add_lora, load_language_model, merge_lora
from model.projectors import MixtureConfig, ProjectorConfig
from model.tiny_clip import MEAN_STD, _untrained, tiny_clip_config
from model.tiny_phi import train_tokenizer
from model.training_reference import make_reference, pool
from model.vlm import build_vlm
from pipeline.publishing.bundle_parts import bundle_parts
from pipeline.publishing.model_card import model_card
from pipeline.recipe.presets import preset
from storage.store.artifacts import ArtifactStore
from storage.store.published import add_entry, read_history
from tests.support.store_fixtures import add, payload

TEXTS = ["How many objects are there? Two.", "What colour is it? Red, green or blue."]
LORA: dict[str, Any] = {"rank": 2, "alpha": 4, "dropout": 0.0, "targets": ("q_proj", "fc1")}
METRICS = [
    {
        "metric": m,
        "condition": c,
        "value": 0.5,
        "low": 0.4,
        "high": 0.6,
        "count": 6,
        "split": "test",
    }
    for m in ("cider_d", "answer_accuracy")
    for c in ("real", "shuffled", "blind")
]


def image(colour: str = "red") -> bytes:
    """Return a PNG with a disc."""
    image = Image.new("RGB", (96, 64), "white")
    ImageDraw.Draw(image).ellipse((10, 10, 50, 50), fill=colour)
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def write_clip(folder: Path) -> None:
    """Write an encoder of 49 patches."""
    config = tiny_clip_config(
        image_size=56, patch_size=8, width=32, layers=2, text_width=32, text_layers=1, embed=32
    )
    config["text_cfg"]["vocab_size"] = 50
    folder.mkdir(parents=True)
    (folder / CONFIG).write_text(json.dumps({"model_cfg": config, "preprocess_cfg": MEAN_STD}))
    torch.manual_seed(0)
    clip, _, _ = _untrained(folder)
    save_clip(clip, config, folder)


def write_language_model(folder: Path) -> int:
    """Write a Phi with its tokenizer and return the id that ends a text."""
    tokenizer = train_tokenizer(TEXTS * 3, 300, folder)
    eos = tokenizer.token_to_id("<|endoftext|>")
    torch.manual_seed(1)
    config = PhiConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=256,
        initializer_range=0.3,
        bos_token_id=eos,
        eos_token_id=eos,
    )
    phi = PhiForCausalLM(config)
    plain = [tokenizer.decode([i]).strip() for i in range(tokenizer.get_vocab_size())]
    with torch.no_grad():
        for token, text in enumerate(plain):
            phi.lm_head.bias[token] = 0.0 if text.isascii() and text.isalpha() else -1e4
    phi.save_pretrained(folder)
    return eos


MIXTURE = MixtureConfig(reducer="none", tokens=49, experts=2, layers=1, balance_weight=0.0)


def write_prefix(folder: Path, lm_folder: Path, projector: ProjectorConfig = MIXTURE) -> None:
    """Write a projector with its separator."""
    torch.manual_seed(2)
    vlm = build_vlm(projector, 32, 49, load_language_model(lm_folder))
    config = {"projector": projector.model_dump(), "vision_width": 32, "patches": 49}
    (folder / PREFIX_CONFIG).write_text(json.dumps(config))
    save_file(vlm.vision_prefix.state_dict(), folder / PREFIX)


def write_card(folder: Path, eos: int) -> None:
    """Write `bundle.json` and the model card."""
    card = {
        "format": FORMAT,
        "name": "tiny-assistant",
        "parts": bundle_parts(folder),
        "layer": -1,
        "patches": 49,
        "template": {"eos_id": eos, "user_prefix": "Q: ", "assistant_prefix": "\nA:"},
        "beams": 1,
        "max_new_tokens": 12,
        "max_pixels": 1_000_000,
        "metrics": METRICS,
    }
    (folder / BUNDLE).write_text(json.dumps(card))
    (folder / "README.md").write_text(model_card(card))


def write_bundle(folder: Path) -> Path:
    """Write a bundle with two examples and return its folder."""
    write_clip(folder / "clip")
    eos = write_language_model(folder / "lm")
    write_prefix(folder, folder / "lm")
    write_card(folder, eos)
    (folder / "examples").mkdir()
    listed = []
    for name, colour in (("0.png", "red"), ("1.png", "blue")):
        (folder / "examples" / name).write_bytes(image(colour))
        listed.append({"image": name, "question": f"Is the disc {colour}?"})
    (folder / "examples" / "examples.json").write_text(json.dumps(listed))
    return folder


def texture(seed: int = 0) -> bytes:
    """Return a PNG of random colours as finely mixed as a photograph of sand or of leaves."""
    pixels = np.random.default_rng(seed).integers(0, 256, (64, 96, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def trained_on_discs(bundle: Path, folder: Path) -> Path:
    """Copy a bundle, say that it was trained on discs of all colours, and return the copy."""
    shutil.copytree(bundle, folder)
    assistant = Assistant(folder)
    discs = [image(f"hsl({hue}, 100%, 50%)") for hue in range(0, 360, 20)]
    pooled = torch.stack([pool(assistant.see(disc)) for disc in discs])
    stated = {"what": "discs", "images": len(discs), "sentence": "It was trained on discs."}
    stated |= make_reference(pooled, "discs").save(folder)
    (folder / BUNDLE).write_text(json.dumps({**assistant.card, "trained_on": stated}))
    return folder


def finetuned(base: Path, folder: Path) -> None:
    """Write a language model with merged adapters, and the adapters, as finetuning leaves them."""
    vlm = build_vlm(
        MIXTURE,
        32,
        49,
        load_language_model(base),
    )
    add_lora(vlm.language_model, **LORA)
    torch.manual_seed(3)
    with torch.no_grad():
        for name, parameter in vlm.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.1)
    adapters = {n: p.detach() for n, p in vlm.named_parameters() if "lora_" in n}
    folder.mkdir(parents=True)
    save_file(adapters, folder / "adapters.safetensors")
    merge_lora(vlm.language_model)
    vlm.language_model.save_pretrained(folder / "lm")


def publish_tiny(
    store: ArtifactStore,
    folder: Path,
    method: str = "lora",
    projector: ProjectorConfig = MIXTURE,
) -> None:
    """Commit backbones, finetune and publish, as a run that trained with LoRA leaves them."""
    folder.mkdir(parents=True, exist_ok=True)
    write_clip(folder / "clip")
    eos = write_language_model(folder / "lm")
    write_prefix(folder, folder / "lm", projector)
    write_card(folder, eos)
    finetuned(folder / "lm", folder / "tuned")
    prefix = {name: folder / name for name in (PREFIX, PREFIX_CONFIG)}
    tuned = _below(folder / "tuned", "lm/", "adapters.safetensors")
    for path in (folder / "lm").glob("tokenizer*"):
        tuned[f"lm/{path.name}"] = path
    recipe = preset("demo").override({"finetune.method": method}).model_dump(mode="json")
    recipe["finetune"] |= {f"lora_{name}": value for name, value in LORA.items()}
    parts = ("images", "conversations", "backbones")
    made = _commit(store, folder, "backbones", _below(folder, "lm/", "clip/"), recipe, parts, {})
    inputs = {"backbones": made}
    inputs["finetune"] = _commit(
        store, folder, "finetune", tuned | prefix, recipe, ("finetune",), inputs
    )
    bundle = {n: p for n, p in tuned.items() if n.startswith("lm/")} | prefix
    bundle |= _below(folder, "clip/", BUNDLE, "README.md")
    published = _commit(store, folder, "publish", bundle, recipe, ("publish",), inputs)
    add_entry(
        store,
        read_history(store),
        action="published",
        run="tiny",
        fingerprint=store.manifests("publish")[0].fingerprint,
        digest=published,
        reason="",
        against="",
    )


def _below(folder: Path, *starts: str) -> dict[str, Path]:
    paths = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}
    return {name: path for name, path in paths.items() if name.startswith(starts)}


def _commit(
    store: ArtifactStore,
    folder: Path,
    stage: str,
    files: dict[str, Path],
    recipe: dict[str, Any],
    parts: tuple[str, ...],
    inputs: dict[str, str],
) -> str:
    what = payload(stage, recipe={name: recipe[name] for name in parts}, inputs=dict(inputs))
    data = {name: path.read_bytes() for name, path in files.items()}
    return add(store, folder / "commits", data, what).digest
