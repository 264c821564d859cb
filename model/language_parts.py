"""The parts of a causal language model of transformers, whatever its family calls them."""

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from model.errors import ModelError

# Fields by which some families scale the scores after the output layer; here only that layer runs.
_SCALES = ("logit_scale", "logits_scaling", "lm_head_multiplier")


def body_of(language_model: PreTrainedModel) -> nn.Module:
    """Return the part that maps embeddings to hidden states: the model without its output layer."""
    return language_model.base_model


def layers_of(language_model: PreTrainedModel) -> nn.ModuleList:
    """Return the transformer layers.

    Raises:
        ModelError: They are not one list inside the body.
    """
    count = language_model.config.num_hidden_layers
    for part in body_of(language_model).children():
        if isinstance(part, nn.ModuleList) and len(part) == count:
            return part
    raise ModelError(f"{type(language_model).__name__} has no list of its {count} layers")


def head_of(language_model: PreTrainedModel) -> nn.Linear:
    """Return the output layer."""
    head = language_model.get_output_embeddings()
    assert isinstance(head, nn.Linear)  # `check_parts` refuses others
    return head


def word_scores(language_model: PreTrainedModel, states: Tensor) -> Tensor:
    """Return the scores of all words after hidden states, float32 [..., word].

    Gemma 2 and 3 bound them by a hyperbolic tangent.
    """
    scores = head_of(language_model)(states).float()
    bound = getattr(language_model.config, "final_logit_softcapping", None)
    return scores if bound is None else torch.tanh(scores / bound) * bound


def check_parts(language_model: PreTrainedModel) -> None:
    """Refuse a language model that cannot be used as body and output layer.

    Raises:
        ModelError: It has no such parts, or scales its scores in a way that is not supported.
    """
    name, config = type(language_model).__name__, language_model.config
    head = language_model.get_output_embeddings()
    if body_of(language_model) is language_model or not isinstance(head, nn.Linear):
        raise ModelError(
            f"{name} is not a body with a linear output layer",
            "use a causal language model of transformers such as PhiForCausalLM",
        )
    scales = [field for field in _SCALES if getattr(config, field, None) not in (None, 1, 1.0)]
    if scales:
        raise ModelError(
            f"{name} scales its scores ({', '.join(scales)}), which is not supported",
            "use another language model",
        )
