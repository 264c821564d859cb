"""Stage `pretrain`: the projector learns captions; language model and encoder stay frozen."""

import json

import torch
from safetensors.torch import save_file

from model.language import load_language_model
from model.vlm import build_vlm, freeze
from pipeline.feed import ExampleSet
from pipeline.pictures import open_patches
from pipeline.recipe_parts import PretrainPart
from pipeline.stage import StageContext, Summary
from pipeline.train_loop import train


def pretrain(context: StageContext, pretrain: PretrainPart, seed: int) -> Summary:
    """Write `vision_prefix.safetensors`, its config and the training's figures."""
    patches = open_patches(context.inputs["features"])
    dtype = torch.bfloat16 if pretrain.precision == "bf16" else torch.float32
    language_model = load_language_model(context.inputs["backbones"].directory("lm"), dtype)
    torch.manual_seed(seed)
    count, width = patches.shape
    vlm = build_vlm(pretrain.projector, width, count, language_model)
    freeze(vlm.language_model)
    examples, shares = context.inputs["examples"], {"caption": 1.0}
    per_row = pretrain.examples_per_row
    trained = train(
        context,
        vlm,
        pretrain,
        training=ExampleSet(examples, patches, "train", shares, seed, per_row),
        validation=ExampleSet(examples, patches, "validation", shares, seed, per_row),
        rates=(pretrain.learning_rate, pretrain.learning_rate),
        seed=seed,
        label="pretrain",
    )
    prefix = {name.removeprefix("vision_prefix."): t for name, t in trained.state.items()}
    save_file(prefix, context.out / "vision_prefix.safetensors")
    config = {
        "projector": pretrain.projector.model_dump(mode="json"),
        "vision_width": width,
        "patches": count,
    }
    (context.out / "vision_prefix.json").write_text(json.dumps(config, indent=1, sort_keys=True))
    return trained.summary
