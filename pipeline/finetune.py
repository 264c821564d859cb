"""Stage `finetune`: projector and language model learn conversations, and keep captioning."""

import torch
from safetensors.torch import save_file

from model.language import add_lora, merge_lora
from model.vlm import VisionLanguageModel
from pipeline.assemble import load_pretrained, save_language_model, save_prefix
from pipeline.feed import open_examples
from pipeline.recipe_parts import FinetunePart
from pipeline.stage import StageContext, Summary
from pipeline.train_loop import Training, train


def finetune(context: StageContext, finetune: FinetunePart, seed: int) -> Summary:
    """Write the finetuned vision prefix and language model (adapters merged and beside).

    Raises:
        PipelineError: There is nothing to train on or to validate with, or a loss is not finite.
    """
    training = prepare(context, finetune, seed)
    trained = train(context, training)
    vlm = training.vlm
    vlm.load_state_dict(trained.state, strict=False)
    save_prefix(vlm, context.inputs["pretrain"], context.out)
    if finetune.method == "lora":
        adapters = {n: t for n, t in trained.state.items() if "lora_" in n}
        save_file(adapters, context.out / "adapters.safetensors")
        merge_lora(vlm.language_model)
    save_language_model(vlm, context.inputs["backbones"], context.out / "lm")
    return {"method": finetune.method, **trained.summary}


def prepare(context: StageContext, part: FinetunePart, seed: int) -> Training:
    """Return the pretrained model, opened for training, and the conversations to learn."""
    shares = {"conversation": 1.0, "caption": _relative(part.caption_share)}
    training, validation = open_examples(context, part, shares, seed)
    half = part.method == "lora" and part.precision == "bf16"
    vlm = load_pretrained(
        context.inputs["backbones"].directory("lm"),
        context.inputs["pretrain"],
        torch.bfloat16 if half else torch.float32,
    )
    _open_for_training(vlm, part, seed)
    rates = (part.projector_learning_rate, part.learning_rate)
    return Training("finetune", vlm, part, training, validation, rates, seed)


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
