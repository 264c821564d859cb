"""Stage `finetune`: projector and language model learn conversations, and keep captioning."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from model.bundle import PREFIX_CONFIG, read_projector
from model.language import adapted_layers, add_lora, merge_lora, nf4
from model.vlm import VisionLanguageModel
from pipeline.engine.devices import check_optimizer, check_quantization
from pipeline.engine.precision import settle_precision
from pipeline.engine.stage import StageContext, Summary
from pipeline.engine.training_steps import language_product
from pipeline.errors import PipelineError
from pipeline.recipe.parts import FinetunePart
from pipeline.training.assemble import load_pretrained, save_language_model, save_prefix
from pipeline.training.example_sets import open_examples
from pipeline.training.image_effect import refuse_blind
from pipeline.training.loop import Training, train


def finetune(context: StageContext, finetune: FinetunePart, seed: int) -> Summary:
    """Write the finetuned vision prefix and language model (adapters merged and separate).

    Raises:
        PipelineError: Pretraining left the image without effect, there are no training or
            validation examples, or a loss is not finite.
    """
    product = partial(language_product, context.inputs["backbones"].directory("lm"))
    settled = settle_precision(finetune.precision, context, product)
    finetune = finetune.model_copy(update={"precision": settled.precision})
    refuse_blind(context.inputs["pretrain"], finetune.least_image_gain)
    training = prepare(context, finetune, seed)
    trained, vlm = train(context, training), training.vlm
    del training
    if finetune.quantize != "none":
        # The adapters are merged into the unquantized layers.
        del vlm
        vlm = _opened(context, finetune, seed, packed=False)
    _take(vlm, trained.state)
    save_prefix(vlm, context.inputs["pretrain"], context.out)
    stated: dict[str, Any] = {"method": finetune.method, **settled.stated}
    if finetune.method == "lora":
        stated["adapted"] = "/".join(map(str, adapted_layers(vlm.language_model)))
        adapters = {n: t for n, t in trained.state.items() if "lora_" in n}
        save_file(adapters, context.out / "adapters.safetensors")
        merge_lora(vlm.language_model)
    if finetune.precision == "bf16":
        # Products used full weights in bf16 only, and the saved dtype is used after loading.
        vlm.language_model.to(torch.bfloat16)
    save_language_model(vlm, context.inputs["backbones"], context.out / "lm")
    return {**stated, **trained.summary}


def prepare(context: StageContext, part: FinetunePart, seed: int) -> Training:
    """Return the pretrained model, opened for training, and the conversations to learn."""
    check_optimizer(context.settings, part.optimizer)
    packed = part.quantize != "none"
    if packed:
        check_quantization(context.settings)
    shares = _shares(part.caption_share)
    projector = read_projector(context.inputs["pretrain"].path(PREFIX_CONFIG))
    training, validation = open_examples(context, part, projector, shares, seed, text_only=True)
    vlm = _opened(context, part, seed, packed=packed)
    rates = (part.projector_learning_rate, part.projector_learning_rate, part.learning_rate)
    return Training("finetune", vlm, part, training, validation, rates, seed)


def _opened(
    context: StageContext, finetune: FinetunePart, seed: int, *, packed: bool
) -> VisionLanguageModel:
    """Return the pretrained model, opened for training; its language model quantized if packed."""
    half = finetune.method == "lora" and finetune.precision == "bf16"
    dtype = torch.bfloat16 if half else torch.float32
    vlm = load_pretrained(
        context.inputs["backbones"].directory("lm"),
        context.inputs["pretrain"],
        dtype,
        nf4(dtype) if packed else None,
    )
    torch.manual_seed(seed)
    vlm.vision_prefix.requires_grad_(True)
    vlm.language_model.requires_grad_(finetune.method == "full")
    if finetune.method == "lora":
        add_lora(
            vlm.language_model,
            rank=finetune.lora_rank,
            alpha=finetune.lora_alpha,
            dropout=finetune.lora_dropout,
            targets=finetune.lora_targets,
        )
    return vlm


def _take(vlm: VisionLanguageModel, state: Mapping[str, Tensor]) -> None:
    """Load the trained weights; the frozen ones are loaded already.

    Raises:
        PipelineError: The state does not have exactly the trainable parameters.
    """
    trained = {name for name, parameter in vlm.named_parameters() if parameter.requires_grad}
    if odd := sorted(trained ^ set(state)):
        raise PipelineError(
            f"the kept checkpoint is of another model: {odd[0]} is in only one of the two",
            "it was left by other versions of the libraries; run again with --rerun finetune",
        )
    vlm.load_state_dict(state, strict=False)


def _shares(captions: float) -> dict[str, float]:
    """Return the shares of `ExampleSet` that give this share of captions."""
    if captions == 1:
        return {"caption": 1.0}
    return {"conversation": 1.0, "caption": captions / (1 - captions)}
