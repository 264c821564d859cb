"""The presets `small` and `photos`, as differences from `coco`.

`small` needs a network: SmolLM2-135M on 10,000 of COCO's images, meant for one consumer GPU or,
slowly, a CPU. `photos` is for photographs and needs no network but a package index: captioned
images in COCO's layout, weights from two packages (`deployments.photo_weights`), two CPU cores.
docs/photograph_trials.md has the trials that set the rates of pretraining, for both, and what was
not tried. `small` has not been run at its size.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.recipe.recipe import Recipe

# The template that SmolLM2-Instruct was trained on, with its control tokens.
SMOLLM2 = {
    "examples.user_prefix": "<|im_start|>user\n",
    "examples.assistant_prefix": "<|im_end|>\n<|im_start|>assistant\n",
    # The question makes the language model write a caption at all, which the prefix would have to
    # learn first without it: docs/photograph_trials.md.
    "examples.caption_question": "Describe the image in one sentence.",
    "pretrain.learning_rate": 3e-4,
    "pretrain.separator_learning_rate": 5e-3,
}
# A model of 135 million parameters fits on any device: nothing has to be recomputed.
LIGHT = {
    # Not every CPU has instructions for bf16, and such a small model fits in fp32, too.
    "pretrain.precision": "auto",
    "finetune.precision": "auto",
    "pretrain.gradient_checkpointing": False,
    "finetune.gradient_checkpointing": False,
}
# Images and weights in the working folder; `make photos` fetches the weights.
LOCAL = {
    "images.source.kind": "folder",
    "images.source.root": "photos",
    "conversations.source.kind": "none",
    "backbones.clip_name": "timm/tf_efficientnet_lite0",
    "backbones.clip_pretrained": "./.weights/tf_efficientnet_lite0",
    "backbones.lm_repository": "./.weights/SmolLM2-135M-Instruct.Q4_1.gguf",
}

PHOTOS_FINETUNE = {
    "finetune.batch": 8,
    "finetune.micro_batch": 8,
    "finetune.examples_per_row": 5,
    "finetune.caption_share": 1.0,
    # 1,900 photographs are soon known by heart: the table in docs/photograph_trials.md.
    "finetune.epochs": 3.0,
    "finetune.augment.mirrored": 0.5,
    "finetune.augment.dropped": 0.1,
    "finetune.objective.replaced": 0.05,
    "finetune.weight_decay": 0.05,
    # After 200 steps 2.619 nats per held-out token, and 2.674 with 5e-4.
    "finetune.learning_rate": 1.5e-3,
    # At 5e-4 three seeds ended 0.05 to 0.09 nats higher on what they train on.
    "finetune.projector_learning_rate": 2e-4,
    "finetune.lora_rank": 16,
    "finetune.lora_alpha": 32,
    "finetune.lora_dropout": 0.0,  # with it a step took 5.2 s on two cores, without 3.5
    "finetune.validate_every": 60,
    "finetune.validation_examples": 250,
}


def small(coco: "Recipe") -> "Recipe":
    """Return the preset `small`."""
    return coco.override(
        {
            **SMOLLM2,
            **LIGHT,
            "images.limit": 10_000,
            "images.test_limit": 1000,
            "backbones.lm_repository": "HuggingFaceTB/SmolLM2-135M-Instruct",
            "backbones.lm_revision": "12fd25f77366fa6b3b4b768ec3050bf629380bac",
            "examples.max_tokens": 512,
            "pretrain.epochs": 2.0,
            "pretrain.batch": 16,
            "pretrain.micro_batch": 16,
            "finetune.batch": 16,
            "finetune.micro_batch": 16,
            "finetune.learning_rate": 5e-4,
            "finetune.projector_learning_rate": 2e-4,
            "finetune.lora_rank": 64,
            "finetune.lora_alpha": 128,
            "evaluate.images": 1000,
            "evaluate.questions": 1000,
            "evaluate.batch": 64,
            "evaluate.pointing_images": 50,
            "publish.name": "phivision-small",
        }
    )


def photos(coco: "Recipe") -> "Recipe":
    """Return the preset `photos`; `images.source.root` and `.weights` are in the working folder."""
    return coco.override(
        {
            **SMOLLM2,
            **LIGHT,
            **LOCAL,
            "images.limit": 2000,
            "images.test_limit": 300,
            "images.validation_share": 0.05,
            "features.batch": 8,  # the first layers are large: 50 at once were slower
            "features.rows_per_shard": 512,
            "examples.max_tokens": 64,
            "pretrain.projector.reducer": "pool",
            "pretrain.projector.tokens": 16,
            "pretrain.projector.experts": 4,
            "pretrain.projector.layers": 2,
            "pretrain.batch": 8,
            "pretrain.micro_batch": 8,
            "pretrain.epochs": 1.5,
            "pretrain.warmup_share": 0.15,  # some 50 steps
            "pretrain.validate_every": 60,
            "pretrain.validation_examples": 250,
            **PHOTOS_FINETUNE,
            "evaluate.images": 300,
            "evaluate.questions": 1,
            "evaluate.batch": 100,  # draws captions 1.3 times as fast as 50 on two cores
            "evaluate.max_new_tokens": 32,
            # CIDEr-D by 0.1 better than greedy captions, for three minutes: docs/photographs.md.
            "evaluate.caption_samples": 20,
            "evaluate.sample_temperature": 0.35,
            "evaluate.likelihood_images": 300,
            "evaluate.pointing_images": 20,
            "publish.name": "phivision-photos",
        }
    )
