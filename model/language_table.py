"""Dimensions of the language models that a recipe can name, for plans made without any weights.

Plain values, because a plan is made before anything is downloaded and without torch. Each model is
one entry; a test compares the counts with transformers' own class.
"""

from collections.abc import Collection
from types import MappingProxyType
from typing import NamedTuple


class LanguageLine(NamedTuple):
    """What a plan needs to know of a Phi, or of a Llama (gated MLP, RMS norms, no biases).

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
        groups: Heads of keys and values; None: as many as attention heads.
        llama: Whether its layers are those of Llama.
        tied: Whether the output layer is the embedding.
    """

    vocabulary: int
    width: int
    layers: int
    heads: int
    inner: int
    positions: int
    fused_gelu: bool
    dropout: float
    groups: int | None = None
    llama: bool = False
    tied: bool = False

    @property
    def keys(self) -> int:
        """Width of a position's keys, and of its values."""
        return self.width * (self.groups or self.heads) // self.heads

    @property
    def linears(self) -> dict[str, tuple[int, int]]:
        """Inputs and outputs of the linear layers of one decoder layer, by name."""
        whole, part = (self.width, self.width), (self.width, self.keys)
        up, down = (self.width, self.inner), (self.inner, self.width)
        attention = {"q_proj": whole, "k_proj": part, "v_proj": part}
        if self.llama:
            return attention | {"o_proj": whole, "gate_proj": up, "up_proj": up, "down_proj": down}
        return attention | {"dense": whole, "fc1": up, "fc2": down}

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
        if self.llama:
            vectors = self.layers * 2 * self.width + self.width
            return self.layer_matrices + (1 if self.tied else 2) * self.head + vectors
        biases = sum(outputs for _, outputs in self.linears.values())
        vectors = self.layers * (biases + 2 * self.width) + 2 * self.width + self.vocabulary
        return self.layer_matrices + 2 * self.head + vectors

    def named(self, targets: str | tuple[str, ...]) -> tuple[str, ...]:
        """Return the names of the layers that targets mean; a string means all of them."""
        return tuple(self.linears) if isinstance(targets, str) else targets

    def adapters(self, targets: Collection[str], rank: int) -> int:
        """Return the parameters of low-rank adapters beside the linear layers of these names."""
        shapes = [shape for name, shape in self.linears.items() if name in targets]
        return self.layers * rank * sum(inputs + outputs for inputs, outputs in shapes)


LANGUAGE_MODELS = MappingProxyType(
    {
        "microsoft/phi-2": LanguageLine(
            51_200, 2560, 32, 32, 10_240, 2048, fused_gelu=False, dropout=0.1
        ),
        "HuggingFaceTB/SmolLM2-135M-Instruct": LanguageLine(
            49_152,
            576,
            30,
            9,
            1536,
            8192,
            fused_gelu=True,
            dropout=0.0,
            groups=3,
            llama=True,
            tied=True,
        ),
        "HuggingFaceTB/SmolLM2-360M-Instruct": LanguageLine(
            49_152,
            960,
            32,
            15,
            2560,
            8192,
            fused_gelu=True,
            dropout=0.0,
            groups=5,
            llama=True,
            tied=True,
        ),
    }
)
"""By Hugging Face repository."""


def line_of(place: str) -> LanguageLine | None:
    """Return the dimensions of a model by the name of its repository, folder or GGUF file.

    A folder `/models/phi-2` and a file `SmolLM2-135M-Instruct.Q4_1.gguf` are identified by their
    names alone, since this is used for plans only.

    Args:
        place: owner/name, hf://owner/name[@revision], a path or a URL.
    """
    name = place.removeprefix("hf://").partition("@")[0]
    last = name.rstrip("/").rpartition("/")[2]
    own = last.partition(".")[0] if last.endswith(".gguf") else last
    named = {known.rpartition("/")[2]: line for known, line in LANGUAGE_MODELS.items()}
    return LANGUAGE_MODELS.get(name) or named.get(own)
