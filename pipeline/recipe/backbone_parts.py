"""The recipe's part `backbones`: which encoders and which language model, trained or published."""

from typing import Annotated, Literal, NamedTuple, Self

from pydantic import Field, model_validator

from model.encoder_table import ENCODERS, encoder_line, is_place, is_timm
from model.language_table import line_of
from pipeline.recipe.fields import Part, Positive, Rate

# As in model/tiny_clip.py and model/tiny_phi.py, which would import torch; a test compares them.
CLIP_HEAD = 32
TINY_POSITIONS = 1024


class TinyBackbones(Part):
    """A small open_clip model and a small Phi, trained on the training split itself."""

    kind: Literal["tiny"] = "tiny"
    image_size: Positive = Field(description="Side of the square the encoder sees, in pixels.")
    patch_size: Positive = Field(description="Side of one patch, in pixels.")
    clip_width: Positive = Field(description="Width of the vision transformer.")
    clip_layers: Positive = Field(description="Layers of the vision transformer.")
    clip_text_width: Positive = Field(description="Width of the text tower.")
    clip_text_layers: Positive = Field(description="Layers of the text tower.")
    clip_embed: Positive = Field(description="Width of the shared embedding.")
    clip_epochs: Positive = Field(description="Passes over the training images.")
    clip_batch: Positive = Field(description="Images per contrastive step.")
    clip_learning_rate: Rate = Field(description="Peak learning rate of the contrastive phase.")
    lm_vocabulary: Positive = Field(description="Size of the BPE vocabulary, at most.")
    lm_width: Positive = Field(description="Hidden width of the language model.")
    lm_layers: Positive = Field(description="Layers of the language model.")
    lm_heads: Positive = Field(description="Attention heads of the language model.")
    lm_epochs: Positive = Field(description="Passes over the training text.")
    lm_batch: Positive = Field(description="Texts per step.")
    lm_learning_rate: Rate = Field(description="Peak learning rate of the language model.")

    @model_validator(mode="after")
    def _sizes_fit(self) -> Self:
        if self.image_size % self.patch_size:
            raise ValueError(
                f"image_size {self.image_size} is not a multiple of patch_size {self.patch_size}"
            )
        for name in ("clip_width", "clip_text_width"):
            if getattr(self, name) % CLIP_HEAD:
                raise ValueError(
                    f"{name} {getattr(self, name)} is not a multiple of {CLIP_HEAD}, "
                    "the width of an attention head"
                )
        # Phi applies rotary embeddings to half of each head, in pairs of dimensions.
        if self.lm_width % (4 * self.lm_heads):
            raise ValueError(
                f"lm_width {self.lm_width} is not a multiple of 4 times {self.lm_heads} lm_heads"
            )
        return self


class EncoderChoice(NamedTuple):
    """A published encoder that a recipe names.

    Attributes:
        name: open_clip's architecture, or `timm/` and timm's.
        pretrained: open_clip's tag of its weights, or where they are.
        folder: The encoder's folder in the artifact of `backbones` and in a bundle.
    """

    name: str
    pretrained: str
    folder: Literal["clip", "second"]

    @property
    def field(self) -> str:
        """The recipe's field that says where the weights are, without its part."""
        return f"{self.folder}_pretrained"


class HubBackbones(Part):
    """Published weights: encoders of open_clip or timm, and a language model of transformers."""

    kind: Literal["hub"] = "hub"
    clip_name: str = Field(
        description="open_clip architecture, e.g. ViT-B-32-quickgelu, or timm/ and an architecture "
        "of timm with a grid of features, e.g. timm/tf_efficientnet_lite0."
    )
    clip_pretrained: str = Field(
        description="open_clip's tag of the weights, e.g. openai, or where they are: a "
        ".safetensors file, or a folder or Hub repository with open_clip_model.safetensors (of "
        "timm: model.safetensors), as path, URL or hf://owner/name[@revision]."
    )
    second_name: str = Field(
        description="A second encoder beside the first, named like clip_name; empty: none. Both "
        "are resampled to one grid of features.patches positions and joined by position."
    )
    second_pretrained: str = Field(
        description="Where the second encoder's weights are, like clip_pretrained; empty: none."
    )
    lm_repository: str = Field(
        description="Where the language model is: owner/name on the Hub, "
        "hf://owner/name[@revision], a folder, a .gguf file, or any fsspec URL of one."
    )
    lm_revision: str = Field(
        description="Commit or branch on the Hub, if lm_repository names none; a commit makes "
        "the run repeatable."
    )

    @property
    def encoders(self) -> list[EncoderChoice]:
        """The encoders, the first one first."""
        first = EncoderChoice(self.clip_name, self.clip_pretrained, "clip")
        second = EncoderChoice(self.second_name, self.second_pretrained, "second")
        return [first, second] if self.second_name else [first]

    @model_validator(mode="after")
    def _encoders_are_known(self) -> Self:
        if self.second_pretrained and not self.second_name:
            raise ValueError(
                f"second_pretrained is {self.second_pretrained}, but second_name is empty: name "
                "the architecture of the second encoder, or empty both"
            )
        for encoder in self.encoders:
            _check_encoder(encoder.name, encoder.pretrained)
        return self


def _check_encoder(name: str, pretrained: str) -> None:
    """Raise ValueError unless there is such an encoder, and such weights for it."""
    if is_timm(name):
        if not is_place(pretrained):
            raise ValueError(
                f"{name} needs the address of weights, not '{pretrained}': "
                "hf://timm/NAME, or the path or URL of a folder or .safetensors file"
            )
        return
    try:
        line = encoder_line(name)
    except KeyError:
        raise ValueError(
            f"no encoder '{name}'; choose {', '.join(ENCODERS)}, another vision "
            "transformer of open_clip, or any of timm as timm/NAME"
        ) from None
    if pretrained == "openai" and not name.endswith("-quickgelu"):
        raise ValueError(f"OpenAI's weights were trained with QuickGELU: use {name}-quickgelu")
    if pretrained not in line.tags and not is_place(pretrained):
        known = " or ".join([*line.tags, "the path or URL of a .safetensors file"])
        raise ValueError(f"{name} has no weights '{pretrained}': use {known}")


BackbonesChoice = Annotated[TinyBackbones | HubBackbones, Field(discriminator="kind")]


def positions_of(backbones: BackbonesChoice) -> int | None:
    """Return how many positions the language model has, None where that is not known here."""
    if isinstance(backbones, TinyBackbones):
        return TINY_POSITIONS
    line = line_of(backbones.lm_repository)
    return line.positions if line else None
