"""The parts of a recipe, one class per stage; every field is hashed and has no default.

A part holds values only. It is imported by `plan`, so it must not import torch, pyarrow or
Prefect; the stage that reads the values implements what they mean.
"""

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from model.augmentation_configs import AugmentationConfig
from model.objective_configs import ObjectiveConfig
from model.projectors import ProjectorConfig
from pipeline.recipe.data_sources import ConversationSource, ImageSource
from pipeline.recipe.fields import Part, Positive, Rate, Share

# auto: either will do, so that word bears the identity and the manifest says what was taken.
Precision = Literal["fp32", "bf16", "auto"]


class ImagesPart(Part):
    """Which images are used, how they are split, and which are quarantined."""

    source: ImageSource = Field(discriminator="kind")
    limit: Positive = Field(description="Training and validation images at most.")
    test_limit: Positive = Field(description="Test images at most.")
    validation_share: Share = Field(
        description="Share of the training images held out to choose checkpoints."
    )
    max_pixels: Positive = Field(description="Pixels above which an image is quarantined.")
    max_bytes: Positive = Field(description="Bytes above which an image file is quarantined.")
    max_bad_share: Share = Field(
        description="Share of quarantined images above which the run stops."
    )


class ConversationsPart(Part):
    """Where the instruction conversations come from."""

    source: ConversationSource = Field(discriminator="kind")
    text_only: Literal["drop", "keep"] = Field(
        description="Records without an image: keep trains on them as plain text, in finetuning."
    )
    max_images: Positive = Field(
        description="Images of one record, at most; records with more are dropped. Each image "
        "takes the projector's tokens, and one more, of the language model's positions."
    )


class ExamplesPart(Part):
    """Filters, prompt template and token limits: what a training example looks like."""

    caption_max_characters: Positive = Field(description="Captions must be shorter than this.")
    caption_min_words: Positive = Field(
        description="Captions need at least this many words; of scripts without blanks between "
        "words (Chinese, Japanese, Thai, ...) each character counts as one."
    )
    refusals: tuple[str, ...] = Field(
        description="Lower-case fragments that mark a caption as a refusal to describe."
    )
    forbidden_answers: tuple[str, ...] = Field(
        description="Lower-case fragments; an answer with one is about captions or boxes."
    )
    max_aspect_ratio: float = Field(gt=1, description="Longer over shorter side, at most.")
    filters: dict[str, str] = Field(
        description="SQL predicates by name, over the columns in pipeline/recipe/user_filters.py; "
        "a row for which one is true is dropped, with the name as its reason."
    )
    max_turns: Positive = Field(description="Question/answer turns kept per conversation.")
    max_tokens: Positive = Field(description="Text tokens of one example, at most.")
    template: str = Field(
        description="plain: the two prefixes below; auto: the language model's own chat "
        "template where it has one, else plain; or the Jinja text of a chat template."
    )
    user_prefix: str = Field(
        description="Text before a question; may hold control tokens of the language model."
    )
    assistant_prefix: str = Field(
        description="Text between a question and its answer; may hold control tokens, too."
    )
    caption_question: str = Field(
        description="The question that every caption answers, between the two prefixes; empty: "
        "captions follow the image without a question."
    )

    @field_validator("refusals", "forbidden_answers")
    @classmethod
    def _lower_case(cls, fragments: tuple[str, ...]) -> tuple[str, ...]:
        for fragment in fragments:
            if fragment != fragment.lower() or not fragment:
                raise ValueError(f"{fragment!r} must be non-empty and in lower case")
        return fragments

    @field_validator("filters")
    @classmethod
    def _predicates(cls, filters: dict[str, str]) -> dict[str, str]:
        if filters:
            from pipeline.recipe.user_filters import (
                filters_fault,  # imports DuckDB, which few recipes need
            )

            if fault := filters_fault(filters):
                raise ValueError(f"filter {fault}")
        return filters

    @field_validator("template")
    @classmethod
    def _is_a_template(cls, text: str) -> str:
        if text not in ("plain", "auto") and "{" not in text:
            raise ValueError(f"{text!r} is neither plain nor auto nor a Jinja template")
        return text


class FeaturesPart(Part):
    """Which patch embeddings are kept and how they are sharded."""

    layer: int = Field(lt=0, description="Transformer layer, counted from the end: -1 the last.")
    second_layer: int = Field(
        lt=0,
        description="Layer of backbones.second_name, counted from the end; without a second "
        "encoder it has no effect.",
    )
    patches: Positive = Field(
        description="Patch tokens the encoder gives per image; of two encoders, the positions of "
        "the square grid to which both are resampled."
    )
    batch: Positive = Field(description="Images per forward pass.")
    precision: Precision = Field(
        description="Arithmetic of the encoder; auto: on a GPU bf16 where it has instructions for "
        "it, on a CPU bf16 where a measured second shows it to be faster. Convolutional encoders "
        "lose more by bf16 than transformers."
    )
    rows_per_shard: Positive = Field(description="Images per feature shard.")
    clip_scores: bool = Field(
        description="Compare each caption with its image by the encoder's text tower, for the view "
        "clip_scores and for clip_score in examples.filters; not with timm's encoders."
    )


class TrainingPart(Part):
    """What both trainings share: schedule, batch and precision."""

    objective: ObjectiveConfig = Field(description="Training method.")
    epochs: float = Field(gt=0, description="Passes over the examples; a fraction is allowed.")
    batch: Positive = Field(
        description="Rows per optimizer step, over all devices; a row is an image and the "
        "examples that share its prefix."
    )
    micro_batch: Positive = Field(description="Rows per forward pass and device.")
    examples_per_row: Positive = Field(
        description="Examples about one image that share its image prefix in one row; "
        "1 shares nothing."
    )
    augment: AugmentationConfig = Field(description="How images are varied from step to step.")
    optimizer: Literal["adamw", "adamw_8bit"] = Field(
        description="AdamW with both moments in float32, or in 8 bits, a quarter of the bytes; the "
        "latter needs bitsandbytes (pip install 'phivision[qlora]') and cannot be sharded by fsdp."
    )
    weight_decay: float = Field(ge=0, description="AdamW's decoupled weight decay.")
    warmup_share: Share = Field(description="Share of the steps with a rising learning rate.")
    clip_norm: float = Field(gt=0, description="Largest norm of the gradient.")
    precision: Precision = Field(
        description="Arithmetic of the forward pass; auto: on a GPU bf16 where it has instructions "
        "for it, on a CPU bf16 where a measured second shows it to be faster."
    )
    attention: Literal["sdpa", "flex_attention"] = Field(
        description="Kernel of the language model's attention in training; flex_attention, for "
        "GPUs only, reads no mask where examples share a row, and skips what the mask hides."
    )
    gradient_checkpointing: bool = Field(description="Recompute activations to save memory.")
    validate_every: Positive = Field(description="Optimizer steps between validations.")
    validation_examples: Positive = Field(
        description="Held-out examples of a validation, at most; the seed chooses among more. Each "
        "validation sees the same ones, so that checkpoints are compared on equal terms."
    )
    keep: Literal["best", "last"] = Field(
        description="Checkpoint that is kept: the one with the lowest held-out loss, or the last."
    )
    patience: int = Field(
        ge=0,
        description="Validations without improvement after which training stops; 0: it never "
        "stops early.",
    )

    @field_validator("precision", mode="before")
    @classmethod
    def _no_half_precision(cls, precision: object) -> object:
        if precision in ("fp16", "16", "float16"):
            raise ValueError("Phi's attention overflows in fp16 and gives NaN: use bf16 or fp32")
        return precision

    @model_validator(mode="after")
    def _batch_is_whole(self) -> Self:
        if self.batch % self.micro_batch:
            raise ValueError(
                f"batch {self.batch} is not a multiple of micro_batch {self.micro_batch}"
            )
        return self


class PretrainPart(TrainingPart):
    """Alignment: the projector learns captions through frozen backbones."""

    projector: ProjectorConfig = Field(description="Network between patches and words.")
    start: str = Field(
        description="Bundle whose projector is trained further: path, URL or hf://owner/name; "
        '"" starts from scratch. Its encoder and language model have to be named in backbones.'
    )
    learning_rate: Rate = Field(description="Peak learning rate of the projector.")
    separator_learning_rate: Rate = Field(
        description="Peak learning rate of the separator, which learns what all captions have in "
        "common; if it is too slow, the projector learns that instead, in every image's tokens."
    )


class FinetunePart(TrainingPart):
    """Instructions: projector and language model learn conversations."""

    method: Literal["full", "lora"] = Field(description="All weights, or low-rank adapters.")
    learning_rate: Rate = Field(description="Peak learning rate of the language model.")
    projector_learning_rate: Rate = Field(description="Peak learning rate of the projector.")
    caption_share: Share = Field(
        description="Share of the examples that are captions, so that captioning is kept."
    )
    lora_rank: Positive = Field(description="Rank of the adapters.")
    lora_alpha: Positive = Field(description="Scale of the adapters, before division by rank.")
    lora_dropout: Share = Field(description="Dropout in front of the adapters.")
    lora_targets: Literal["all-linear"] | Annotated[tuple[str, ...], Field(min_length=1)] = Field(
        description="Names of the adapted linear layers; all-linear is every one but the output "
        "layer, whatever a model calls them."
    )
    least_image_gain: float = Field(
        ge=0,
        description="Nats per token that a held-out caption must gain from its own image over "
        "another one after pretraining, or finetuning does not start; 0: it always starts.",
    )
    quantize: Literal["none", "nf4"] = Field(
        description="How the frozen layers below the adapters are stored in training: unchanged, "
        "or in 4 bits (QLoRA); the adapters are always merged into the unquantized layers."
    )

    @model_validator(mode="after")
    def _only_frozen_layers_are_quantized(self) -> Self:
        if self.quantize != "none" and self.method != "lora":
            raise ValueError(
                f"quantize {self.quantize} needs method lora: 4-bit weights cannot be trained"
            )
        return self


class EvaluatePart(Part):
    """What is generated and scored on the test images."""

    images: Positive = Field(description="Test images captioned, at most.")
    questions: Positive = Field(description="Test questions answered, at most.")
    batch: Positive = Field(description="Prompts generated together.")
    max_new_tokens: Positive = Field(description="Tokens after which a generation is cut.")
    beams: Positive = Field(description="Beams of the search; 1 is greedy.")
    caption_samples: int = Field(
        ge=0,
        description="Captions drawn for an image beside the greedy one by the finetuned model; of "
        "all, the one is taken that agrees most with captions of similar training images; 0: the "
        "greedy one.",
    )
    sample_temperature: float = Field(
        gt=0, description="Divisor of the logits where captions are drawn."
    )
    resamples: Positive = Field(description="Bootstrap resamples of every interval.")
    likelihood_images: Positive = Field(
        description="Test images of presence questions and of image choice, at most."
    )
    choices: int = Field(ge=2, description="Images from which a caption's own is chosen.")
    presence_objects: Positive = Field(
        description="Present objects asked for per image, and as many absent ones in each set, at "
        "most."
    )
    presence_question: str = Field(
        description="Question about presence; {object} stands for an object with its article.",
        pattern=r"\{object\}",
    )
    presence_answers: tuple[str, str] = Field(
        description="The two answers whose likelihoods are compared, yes before no, spelt as the "
        "conversations spell them."
    )

    pointing_images: int = Field(
        ge=0,
        description="Test images, at most, for whose texts patch importance is measured; 0: none. "
        "Each takes one pass per patch, under two conditions.",
    )

    @model_validator(mode="after")
    def _captions_are_drawn_beside_greedy_ones(self) -> Self:
        if self.caption_samples and self.beams > 1:
            raise ValueError(
                f"caption_samples {self.caption_samples} needs beams 1: captions are drawn beside "
                "a greedy one"
            )
        return self

    @field_validator("presence_question")
    @classmethod
    def _asks_for_an_object(cls, text: str) -> str:
        try:
            asked = text.format(object="a cup")
        except (LookupError, ValueError, AttributeError):
            raise ValueError(f"{text!r} has other braces than those of {{object}}") from None
        if "a cup" not in asked:
            raise ValueError(f"{text!r} does not ask for {{object}}")
        return text

    @field_validator("presence_answers")
    @classmethod
    def _answers_part(cls, answers: tuple[str, str]) -> tuple[str, str]:
        yes, no = answers
        if yes.startswith(no) or no.startswith(yes):
            raise ValueError(
                f"{yes!r} and {no!r} cannot be told apart: one is the beginning of the other"
            )
        return answers


class PublishPart(Part):
    """How the bundle is named and what decides whether it is published."""

    name: str = Field(description="Name of the assistant in its card.", pattern=r"^[\w.-]+$")
    metric: Literal["cider_d", "answer_accuracy"] = Field(
        description="Main metric: the image must improve it, and it must not be significantly "
        "below the published model's."
    )
