"""The vision-language model: [projected patches][separator][text] through a stock causal LM.

The language model is used through `inputs_embeds` only, so any causal LM of transformers with a
body and a linear output layer works unchanged. One rule of alignment holds everywhere: with a
prefix of S positions (separator included), token t of an example is at position S + t and is
predicted at position S + t - 1; the separator predicts the first token. Examples about the same
image may share its prefix in one row (`model.shared_rows`). The prefix of each further image of an
example stands inside its text (`Batch.slots`), as if it were words. Padding and targets are masks
over positions; no token id ever marks them.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Float32, Int64
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import checkpoint
from transformers import Cache, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from model.attention_masks import mask_for
from model.batch import Batch
from model.blocks import Projection
from model.errors import ModelError
from model.frozen_head import FrozenHeadLoss
from model.language_parts import body_of, check_parts, head_of, word_scores
from model.projectors import ProjectorConfig
from model.shared_rows import positions_in_example, predictors
from model.vision_prefix import VisionPrefix

# Rows of logits held at once: 1,024 rows of 51,200 words are 210 MB in float32.
LOGIT_ROWS = 1024


class SupervisedStates(NamedTuple):
    """The language model's output for a batch, at supervised positions only (row-major).

    Attributes:
        states: [target, language]; hidden states that predict the targets.
        targets: [target] int64; the true token ids.
        auxiliary_loss: Scalar; the projector's own loss.
        expert_usage: [expert]; see `Projection`.
    """

    states: Tensor
    targets: Tensor
    auxiliary_loss: Tensor
    expert_usage: Tensor


class VisionLanguageModel(nn.Module):
    """A vision prefix before a causal language model."""

    def __init__(self, vision_prefix: VisionPrefix, language_model: PreTrainedModel) -> None:
        super().__init__()
        self.vision_prefix = vision_prefix
        self.language_model = language_model

    def train(self, mode: bool = True) -> "VisionLanguageModel":
        """Switch modes, but keep a frozen language model in evaluation mode.

        Phi-2 has dropout, which would only add noise to a model that does not learn.
        """
        super().train(mode)
        if mode and not any(p.requires_grad for p in self.language_model.parameters()):
            self.language_model.eval()
            # transformers recomputes activations only in layers that are in training mode; the
            # flag of the layer itself switches that, its dropout has a flag of its own.
            for module in self.language_model.modules():
                if isinstance(module, GradientCheckpointingLayer):
                    module.training = module.gradient_checkpointing
        return self

    def enable_gradient_checkpointing(self) -> None:
        """Recompute the language model's activations in the backward pass, to save memory."""
        # The method was renamed within transformers 5, and the old name warns there.
        enable = getattr(self.language_model, "activation_checkpointing_enable", None)
        enable = enable or self.language_model.gradient_checkpointing_enable
        enable({"use_reentrant": False})
        self.train(self.training)

    def embed_text(self, ids: Int64[Tensor, "*shape"]) -> Float[Tensor, "*shape language"]:
        """The language model's word embeddings of `ids`."""
        return self.language_model.get_input_embeddings()(ids)

    def embed_images(self, patches: Float[Tensor, "batch patch vision"]) -> Projection:
        """The prefix of each image, in the type of the word embeddings."""
        projection = self.vision_prefix(patches)
        dtype = self.language_model.get_input_embeddings().weight.dtype
        return projection._replace(tokens=projection.tokens.to(dtype))

    def hidden(
        self,
        embeddings: Float[Tensor, "batch new language"],
        attention: Bool[Tensor, "batch position"] | None = None,
        cache: Cache | None = None,
    ) -> Float[Tensor, "batch new language"]:
        """The language model's last hidden states of `embeddings`.

        Args:
            embeddings: New positions; with a cache they continue what it holds.
            attention: True at tokens, for the cached and the new positions; None, without a
                cache, where no token has padding before it.
            cache: Keys and values of earlier positions; it grows in place.

        Raises:
            ModelError: More positions than the language model was made for.
        """
        self.check_length((embeddings if attention is None else attention).shape[1])
        outputs = body_of(self.language_model)(
            inputs_embeds=embeddings,
            attention_mask=attention,
            past_key_values=cache,
            use_cache=cache is not None,
        )
        return outputs.last_hidden_state

    def hidden_in_segments(
        self,
        embeddings: Float[Tensor, "batch position language"],
        segments: Int64[Tensor, "batch text"],
        attention: Bool[Tensor, "batch text"],
        has_image: Bool[Tensor, "batch"] | None = None,
    ) -> Float[Tensor, "batch position language"]:
        """The last hidden states of prefix and text where several examples share the prefix.

        Or where rows have no image: their text has the positions that it would have behind one.

        Args:
            embeddings: Prefix and text.
            segments: Number of each text token's example inside its row.
            attention: True at text tokens, False at padding.
            has_image: See `Batch`.

        Raises:
            ModelError: An example has more positions than the language model was made for, or its
                attention takes no mask per pair of positions.
        """
        config, prefix = self.language_model.config, embeddings.shape[1] - segments.shape[1]
        positions = positions_in_example(segments, attention, prefix)
        if embeddings.shape[1] > self.max_positions:  # reading values makes the CPU wait for a GPU
            self.check_length(int(positions.max()) + 1)
        attention_by = config._attn_implementation
        outputs = body_of(self.language_model)(
            inputs_embeds=embeddings,
            attention_mask=mask_for(attention_by, segments, prefix, has_image, embeddings.dtype),
            position_ids=positions,
            use_cache=False,
        )
        return outputs.last_hidden_state

    def supervised_states(
        self, batch: Batch, fed_ids: Int64[Tensor, "batch text"] | None = None
    ) -> SupervisedStates:
        """One masked forward pass; hidden states at the positions that predict a target.

        Args:
            batch: Images and text.
            fed_ids: Token ids to feed in place of the batch's; the targets stay the batch's.

        Raises:
            ModelError: Nothing is supervised, or the text is too long for the language model.
        """
        prefix = self.embed_images(batch.patches)
        fed_ids = batch.input_ids if fed_ids is None else fed_ids
        first, further = prefix.tokens.tensor_split([len(fed_ids)])
        # The last token is only a target: nothing is predicted from it.
        text = self.embed_text(fed_ids[:, :-1])
        if batch.slot_rows is not None and batch.slot_columns is not None:
            text = text.index_put((batch.slot_rows, batch.slot_columns), further.flatten(0, 1))
        joint = torch.cat([first, text], dim=1)
        before = prefix.tokens.shape[1] - 1  # the separator's position
        rows, columns = batch.target_rows, batch.target_columns
        if batch.segments is None and batch.has_image is None:
            # No token attends to padding on its right; without a mask for it, attention uses its
            # causal kernel.
            states = self.hidden(joint)[rows, before + columns]
        else:
            alone = batch.segments is None
            segments = torch.zeros_like(batch.input_ids) if alone else batch.segments
            hidden = self.hidden_in_segments(
                joint, segments[:, :-1], batch.attention[:, :-1], batch.has_image
            )
            states = hidden[rows, before + predictors(segments)[rows, columns]]
        if not len(states):
            raise ModelError("no token of the batch is supervised")
        return SupervisedStates(
            states,
            batch.input_ids[rows, columns],
            prefix.auxiliary_loss,
            prefix.expert_usage,
        )

    def logits(self, states: Float[Tensor, "*rows language"]) -> Float32[Tensor, "*rows word"]:
        """Scores of all words of the vocabulary for the next token."""
        return word_scores(self.language_model, states)

    def nll(
        self, states: Float[Tensor, "target language"], targets: Int64[Tensor, "target"]
    ) -> Float32[Tensor, "target"]:
        """Negative log-likelihood of each target, in nats.

        Memory does not grow with targets times vocabulary: behind a frozen output layer the
        gradient is made with the loss; behind another, long answers go through in chunks whose
        logits are recomputed in the backward pass.
        """
        weights = list(head_of(self.language_model).parameters())
        # A sharded weight is whole only while its layer is called in its turn.
        fixed = not any(p.requires_grad or isinstance(p, DTensor) for p in weights)
        if fixed and states.requires_grad:
            return FrozenHeadLoss.apply(states, targets, self.logits)
        chunks = zip(states.split(LOGIT_ROWS), targets.split(LOGIT_ROWS), strict=True)
        if len(targets) <= LOGIT_ROWS or not torch.is_grad_enabled():
            return torch.cat([self._nll_rows(*chunk) for chunk in chunks])
        return torch.cat(
            [checkpoint(self._nll_rows, *chunk, use_reentrant=False) for chunk in chunks]
        )

    def _nll_rows(self, states: Tensor, targets: Tensor) -> Tensor:
        return nn.functional.cross_entropy(self.logits(states), targets, reduction="none")

    @torch.no_grad()
    def predict(self, states: Float[Tensor, "target language"]) -> Int64[Tensor, "target"]:
        """The likeliest next token after each state."""
        return torch.cat([self.logits(s).argmax(dim=-1) for s in states.split(LOGIT_ROWS)])

    def forward(self, batch: Batch) -> Float32[Tensor, "target"]:
        """Negative log-likelihood of each supervised token, row by row, in nats."""
        output = self.supervised_states(batch)
        return self.nll(output.states, output.targets)

    def check_length(self, positions: int) -> None:
        """Refuse sequences that the language model's positions do not cover.

        Raises:
            ModelError: Too many positions.
        """
        if positions > self.max_positions:
            raise ModelError(
                f"{positions} positions, but the language model takes {self.max_positions}",
                "lower examples.max_tokens, max_new_tokens or the projector's tokens",
            )

    @property
    def max_positions(self) -> float:
        """Positions that the language model was made for; infinite where it knows no limit."""
        limit = getattr(self.language_model.config, "max_position_embeddings", None)
        return math.inf if limit is None else limit


def embedding_scale(language_model: PreTrainedModel) -> float:
    """The root mean square of the language model's word embeddings, as they enter its layers."""
    words = language_model.get_input_embeddings()
    weight = words.get_parameter("weight").detach().float()
    # Gemma's embedding multiplies what it looks up.
    return weight.square().mean().sqrt().item() * float(getattr(words, "embed_scale", 1.0))


def build_vlm(
    config: ProjectorConfig, vision_width: int, patches: int, language_model: PreTrainedModel
) -> VisionLanguageModel:
    """A new vision prefix, matched to the language model's width and scale, before it.

    Raises:
        ModelError: The projector does not fit `patches`, or the language model lacks the parts.
    """
    check_parts(language_model)
    scale = embedding_scale(language_model)
    width = language_model.config.hidden_size
    projector = config.build(vision_width, patches, width, scale)
    return VisionLanguageModel(VisionPrefix(projector, vision_width, width, scale), language_model)


def freeze(module: nn.Module) -> None:
    """Take all parameters of a module out of training, and switch its dropout off."""
    module.requires_grad_(False)
    module.eval()


def check_precision(precision: str) -> None:
    """Refuse a precision that gives wrong numbers with Phi.

    Args:
        precision: fp32, bf16, or one of Lightning's names such as bf16-mixed.

    Raises:
        ModelError: fp16 in any of its names, or an unknown precision.
    """
    if precision in {"fp16", "float16", "half", "16", "16-mixed", "16-true"}:
        raise ModelError(
            f"precision {precision!r}: Phi-2's attention overflows in fp16 and gives NaN",
            "use bf16 or fp32",
        )
    known = ("fp32", "bf16", "32", "32-true", "bf16-mixed", "bf16-true")
    if precision not in known:
        raise ModelError(f"precision {precision!r} is unknown", f"use one of {', '.join(known)}")
