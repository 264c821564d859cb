"""Stage `pretrain`: the projector learns captions; language model and encoder stay frozen."""

import json
from functools import partial

import torch
from safetensors.torch import save_file

from model.bundle import PREFIX, PREFIX_CONFIG
from model.language import load_language_model
from model.vlm import build_vlm, freeze
from pipeline.engine.devices import check_optimizer, pick_device
from pipeline.engine.precision import settle_precision
from pipeline.engine.stage import StageContext, Summary
from pipeline.engine.training_steps import language_product
from pipeline.recipe.parts import PretrainPart
from pipeline.training.example_sets import has_captions, open_examples
from pipeline.training.image_effect import measure_effect, write_effect
from pipeline.training.loop import Training, train
from pipeline.training.start import bring_prefix

CENTRED_ON = 1024  # training images whose patches are averaged; 154 MB at ViT-B/32


def pretrain(context: StageContext, pretrain: PretrainPart, seed: int) -> Summary:
    """Write `vision_prefix.safetensors`, its config and the training's figures.

    Raises:
        PipelineError: There are no training or validation examples, or a loss is not finite.
    """
    product = partial(language_product, context.inputs["backbones"].directory("lm"))
    settled = settle_precision(pretrain.precision, context, product)
    pretrain = pretrain.model_copy(update={"precision": settled.precision})
    training = prepare(context, pretrain, seed)
    trained = train(context, training)
    prefix = {name.removeprefix("vision_prefix."): t for name, t in trained.state.items()}
    prefix |= dict(training.vlm.vision_prefix.named_buffers())
    save_file(prefix, context.out / PREFIX)
    training.vlm.load_state_dict(trained.state, strict=False)
    effect = measure_effect(
        training.vlm,
        training.validation,
        pretrain.micro_batch,
        pick_device(context.settings),
        half=pretrain.precision == "bf16",
    )
    write_effect(effect, context.out)
    count, width = training.training.patches.shape
    config = {
        "projector": pretrain.projector.model_dump(mode="json"),
        "vision_width": width,
        "patches": count,
    }
    (context.out / PREFIX_CONFIG).write_text(json.dumps(config, indent=1, sort_keys=True))
    return {**settled.stated, **trained.summary, "image_gain": round(effect.gain, 4)}


def prepare(context: StageContext, part: PretrainPart, seed: int) -> Training:
    """Return a projector with a frozen language model, and the captions to learn.

    Where no image has a caption, it learns from conversations.
    """
    check_optimizer(context.settings, part.optimizer)
    captions = {"caption": 1.0} if has_captions(context) else {"conversation": 1.0}
    training, validation = open_examples(
        context, part, part.projector, captions, seed, text_only=False
    )
    dtype = torch.bfloat16 if part.precision == "bf16" else torch.float32
    language_model = load_language_model(context.inputs["backbones"].directory("lm"), dtype)
    torch.manual_seed(seed)
    count, width = training.patches.shape
    vlm = build_vlm(part.projector, width, count, language_model)
    if part.start:
        # Centred as before: the projector has learned from patches around that mean.
        vlm.vision_prefix.load_state_dict(bring_prefix(context, part, count, width))
    else:
        vlm.vision_prefix.centre_on(training.some_patches(CENTRED_ON))
    freeze(vlm.language_model)
    rates = (part.learning_rate, part.separator_learning_rate, 0.0)  # words stay frozen
    return Training("pretrain", vlm, part, training, validation, rates, seed)
