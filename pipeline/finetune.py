"""Stage `finetune`: projector and language model learn conversations, and keep captioning."""

import torch
from safetensors.torch import save_file

from model.language import add_lora, merge_lora
from model.vlm import VisionLanguageModel
from pipeline.assemble import load_pretrained, save_language_model, save_prefix
from pipeline.feed import ExampleSet
from pipeline.pictures import open_patches
from pipeline.recipe_parts import FinetunePart
from pipeline.stage import StageContext, Summary
from pipeline.train_loop import train


def finetune(context: StageContext, finetune: FinetunePart, seed: int) -> Summary:
    """Write the finetuned vision prefix and language model (adapters merged and beside)."""
    patches = open_patches(context.inputs["features"])
    lora = finetune.method == "lora"
    half = lora and finetune.precision == "bf16"
    vlm = load_pretrained(
        context.inputs["backbones"].directory("lm"),
        context.inputs["pretrain"],
        torch.bfloat16 if half else torch.float32,
    )
    _open_for_training(vlm, finetune, seed)
    examples = context.inputs["examples"]
    shares = {"conversation": 1.0, "caption": _relative(finetune.caption_share)}
    per_row = finetune.examples_per_row
    trained = train(
        context,
        vlm,
        finetune,
        training=ExampleSet(examples, patches, "train", shares, seed, per_row),
        validation=ExampleSet(examples, patches, "validation", shares, seed, per_row),
        rates=(finetune.projector_learning_rate, finetune.learning_rate),
        seed=seed,
        label="finetune",
    )
    vlm.load_state_dict(trained.state, strict=False)
    save_prefix(vlm, context.inputs["pretrain"], context.out)
    if lora:
        adapters = {n: t for n, t in trained.state.items() if "lora_" in n}
        save_file(adapters, context.out / "adapters.safetensors")
        merge_lora(vlm.language_model)
    save_language_model(vlm, context.inputs["backbones"], context.out / "lm")
    return {"method": finetune.method, **trained.summary}


def _open_for_training(vlm: VisionLanguageModel, finetune: FinetunePart, seed: int) -> None:
    torch.manual_seed(seed)
    vlm.requires_grad_(True)
    if finetune.method == "lora":
        add_lora(
            vlm.language_model,
            rank=finetune.lora_rank,
            alpha=finetune.lora_alpha,
            dropout=finetune.lora_dropout,
            targets=finetune.lora_targets,
        )


def _relative(share: float) -> float:
    """Return how many captions go with one conversation to make this share of all examples."""
    return share / (1 - share) if share < 1 else 1e9
