"""Dimensions of the language models that a recipe can name, for plans made without any weights.

Plain values, because a plan is made before anything is downloaded and without torch. Each model is
one entry; a test compares the counts with transformers' own class.
"""

from collections.abc import Collection
from types import MappingProxyType
from typing import Literal, NamedTuple

Layout = Literal["phi", "llama", "phi3", "neox"]
"""How the linear layers of a decoder layer are divided and called; all of a family share it."""


class LanguageLine(NamedTuple):
    """What a plan needs to know of a language model.

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
        layout: Which linear layers a decoder layer has; `llama` and `phi3` have gated MLPs, RMS
            norms and no biases.
        tied: Whether the output layer is the embedding.
        head_size: Width of a head; None: the hidden width divided by the heads.
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
    layout: Layout = "phi"
    tied: bool = False
    head_size: int | None = None

    @property
    def queries(self) -> int:
        """Width of a position's queries, all heads together."""
        return self.heads * (self.head_size or self.width // self.heads)

    @property
    def keys(self) -> int:
        """Width of a position's keys, and of its values."""
        return self.queries * (self.groups or self.heads) // self.heads

    @property
    def gated(self) -> bool:
        """Whether the MLP multiplies two of its parts."""
        return self.layout in ("llama", "phi3")

    @property
    def linears(self) -> dict[str, tuple[int, int]]:
        """Inputs and outputs of the linear layers of one decoder layer, by name."""
        width, inner, queries, keys = self.width, self.inner, self.queries, self.keys
        apart = {"q_proj": (width, queries), "k_proj": (width, keys), "v_proj": (width, keys)}
        joined, out = (width, queries + 2 * keys), (queries, width)
        up, down = (width, inner), (inner, width)
        match self.layout:
            case "phi":
                return apart | {"dense": out, "fc1": up, "fc2": down}
            case "llama":
                gated = {"gate_proj": up, "up_proj": up, "down_proj": down}
                return apart | {"o_proj": out} | gated
            case "phi3":
                gated = {"gate_up_proj": (width, 2 * inner), "down_proj": down}
                return {"qkv_proj": joined, "o_proj": out} | gated
            case "neox":
                plain = {"dense_h_to_4h": up, "dense_4h_to_h": down}
                return {"query_key_value": joined, "dense": out} | plain

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
        """All parameters: matrices, biases, norms.

        Exact for Phi, GPT-NeoX, and Llama without biases. Families with biases of their own or
        more norms have up to a thousandth more.
        """
        whole = self.layer_matrices + (1 if self.tied else 2) * self.head
        if self.gated:
            return whole + self.layers * 2 * self.width + self.width
        biases = sum(outputs for _, outputs in self.linears.values())
        norms = 4 if self.layout == "neox" else 2  # vectors of a layer's norms
        vectors = self.layers * (biases + norms * self.width) + 2 * self.width
        return whole + vectors + (self.vocabulary if self.layout == "phi" else 0)

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
            layout="llama",
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
            layout="llama",
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
