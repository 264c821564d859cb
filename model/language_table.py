"""Dimensions of the language models that a recipe can name, for plans made without any weights.

Plain values, because a plan is made before anything is downloaded and without torch. One more model
is one more line; a test holds the counts against transformers' own class.
"""

from collections.abc import Collection
from types import MappingProxyType
from typing import NamedTuple


class LanguageLine(NamedTuple):
    """What a plan needs to know of a Phi.

    Attributes:
        vocabulary: Rows of the embedding.
        width: Hidden width.
        layers: Decoder layers.
        heads: Attention heads.
        inner: Width inside the MLP.
        positions: Tokens that it can read at once.
        fused_gelu: Whether the activation is one kernel; transformers' `gelu_new` is several, and
            each keeps what it needs for the backward pass.
        dropout: Dropout of a layer's two outputs, in training.
    """

    vocabulary: int
    width: int
    layers: int
    heads: int
    inner: int
    positions: int
    fused_gelu: bool
    dropout: float

    @property
    def linears(self) -> dict[str, tuple[int, int]]:
        """Inputs and outputs of the linear layers of one decoder layer, by name."""
        attention = {name: (self.width, self.width) for name in _ATTENTION}
        return attention | {"fc1": (self.width, self.inner), "fc2": (self.inner, self.width)}

    @property
    def layer_matrices(self) -> int:
        """Matrix parameters of all decoder layers."""
        return self.layers * sum(inputs * outputs for inputs, outputs in self.linears.values())

    @property
    def head(self) -> int:
        """Matrix parameters of the output layer, and of the embedding."""
        return self.vocabulary * self.width

    @property
    def parameters(self) -> int:
        """All parameters: matrices, biases, norms."""
        biases = sum(outputs for _, outputs in self.linears.values())
        vectors = self.layers * (biases + 2 * self.width) + 2 * self.width + self.vocabulary
        return self.layer_matrices + 2 * self.head + vectors

    def named(self, targets: str | tuple[str, ...]) -> tuple[str, ...]:
        """Return the names of the layers that targets mean; a text means all of them."""
        return tuple(self.linears) if isinstance(targets, str) else targets

    def adapters(self, targets: Collection[str], rank: int) -> int:
        """Return the parameters of low-rank adapters beside the linear layers of these names."""
        shapes = [shape for name, shape in self.linears.items() if name in targets]
        return self.layers * rank * sum(inputs + outputs for inputs, outputs in shapes)


_ATTENTION = ("q_proj", "k_proj", "v_proj", "dense")

LANGUAGE_MODELS = MappingProxyType(
    {
        "microsoft/phi-2": LanguageLine(
            51_200, 2560, 32, 32, 10_240, 2048, fused_gelu=False, dropout=0.1
        )
    }
)
"""By Hugging Face repository."""
