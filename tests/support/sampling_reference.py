"""Scheduled sampling by its definition, against which the parallel form is tested."""

import torch
from transformers import DynamicCache

from model.batch import Batch
from model.errors import ModelError
from model.objectives import ObjectiveLoss, true_token_coins
from model.vlm import VisionLanguageModel


def scheduled_sampling_reference(
    vlm: VisionLanguageModel, batch: Batch, rate: float, generator: torch.Generator
) -> ObjectiveLoss:
    """Scheduled sampling token by token with a key-value cache (Bengio et al. 2015).

    It takes one forward pass per text token, and cannot be used with gradient checkpointing, which
    drops the cache.

    Raises:
        ModelError: A row holds more than one example, or no image.
    """
    alone = batch.has_image is None and batch.slots is None
    if (batch.segments is not None and batch.segments.any()) or not alone:
        raise ModelError("the sequential reference takes one example per row, about an image")
    truth = true_token_coins(batch, rate, generator)
    prefix = vlm.embed_images(batch.patches)
    cache = DynamicCache(config=vlm.language_model.config)
    attention = torch.ones(prefix.tokens.shape[:2], dtype=torch.bool, device=truth.device)
    embeddings, states = prefix.tokens, []
    for token in range(batch.input_ids.shape[1]):
        states.append(vlm.hidden(embeddings, attention, cache)[:, -1])
        fed = torch.where(truth[:, token], batch.input_ids[:, token], vlm.predict(states[-1]))
        embeddings = vlm.embed_text(fed.unsqueeze(1))
        attention = torch.cat([attention, batch.attention[:, token : token + 1]], dim=1)
    places = batch.target_rows, batch.target_columns
    token_nll = vlm.nll(torch.stack(states, dim=1)[places], batch.input_ids[places])
    return ObjectiveLoss(token_nll, prefix.auxiliary_loss, prefix.expert_usage)
