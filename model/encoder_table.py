"""Every published encoder a recipe can name, in one table; one more is one more line.

Plain values, because a recipe is checked long before a model is loaded. A test holds each line
against open_clip's own configuration.
"""

from types import MappingProxyType
from typing import NamedTuple


class EncoderLine(NamedTuple):
    """What is known of an encoder before its weights are there.

    Attributes:
        image: Side of the square it sees, in pixels.
        patch: Side of one patch, in pixels.
        width: Width of a patch embedding.
        layers: Transformer layers.
        tags: open_clip's names of weights that fit; a path of a `.safetensors` file fits too.
    """

    image: int
    patch: int
    width: int
    layers: int
    tags: tuple[str, ...]

    @property
    def grid(self) -> int:
        """Patches along one side."""
        return self.image // self.patch

    @property
    def patches(self) -> int:
        """Patch embeddings of one image."""
        return self.grid**2


# OpenAI's weights were trained with QuickGELU, those of others mostly with GELU.
ENCODERS = MappingProxyType(
    {
        "ViT-B-32": EncoderLine(224, 32, 768, 12, ("laion2b_s34b_b79k", "datacomp_xl_s13b_b90k")),
        "ViT-B-32-quickgelu": EncoderLine(224, 32, 768, 12, ("openai", "metaclip_fullcc")),
        "ViT-B-16": EncoderLine(224, 16, 768, 12, ("laion2b_s34b_b88k", "datacomp_xl_s13b_b90k")),
        "ViT-B-16-quickgelu": EncoderLine(224, 16, 768, 12, ("openai", "metaclip_fullcc")),
        "ViT-L-14": EncoderLine(224, 14, 1024, 24, ("laion2b_s32b_b82k", "datacomp_xl_s13b_b90k")),
        "ViT-L-14-quickgelu": EncoderLine(224, 14, 1024, 24, ("openai", "metaclip_fullcc")),
        "ViT-L-14-336-quickgelu": EncoderLine(336, 14, 1024, 24, ("openai",)),
        "ViT-B-16-SigLIP": EncoderLine(224, 16, 768, 12, ("webli",)),
        "ViT-B-16-SigLIP-384": EncoderLine(384, 16, 768, 12, ("webli",)),
        "ViT-SO400M-14-SigLIP-384": EncoderLine(384, 14, 1152, 27, ("webli",)),
    }
)


def is_path(pretrained: str) -> bool:
    """Return whether a choice of weights names a local file instead of a tag."""
    return pretrained.endswith(".safetensors")
