"""Images that a language model has read before: what they left in its key-value cache.

The prefix of an image begins every conversation about it, and nothing before it, so its keys and
values are the same in each, and so are those of a prompt that several texts answer. Kwon et al.
2023 (arXiv 2309.06180), section 4.4, shares a prefix so.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from operator import add
from typing import Any

import torch
from jaxtyping import Bool, Float, Float32, Int64
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache

from model.batch import Batch
from model.vlm import VisionLanguageModel


@dataclass(frozen=True)
class ReadPrefix:
    """The prefix of an image, read, and maybe a prompt behind it.

    Attributes:
        tokens: What was read: projected patches, the separator, the prompt [prefix, language].
        states: Keys and values [layer, 2, head, prefix, width].
    """

    tokens: Float[Tensor, "prefix language"]
    states: Float[Tensor, "layer 2 head prefix width"]

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return self.tokens.nbytes + self.states.nbytes


def read_prefix(
    embeddings: Float[Tensor, "position language"], cache: DynamicCache, row: int, places: slice
) -> ReadPrefix | None:
    """Return the prefix that a row has read, None where layers differ in their shapes.

    Args:
        embeddings: What the row has read.
        cache: What reading it left.
        row: The row.
        places: The positions of the prefix.
    """
    layers: list[Any] = cache.layers
    if len({each.shape for layer in layers for each in (layer.keys, layer.values)}) > 1:
        return None
    pairs = [each[row, :, places] for layer in layers for each in (layer.keys, layer.values)]
    states = torch.stack(pairs).unflatten(0, (len(layers), 2))
    return ReadPrefix(embeddings[places].clone(), states)


def behind_prefixes(
    vlm: VisionLanguageModel, prefixes: Sequence[ReadPrefix], prompts: Sequence[Sequence[int]]
) -> tuple[Float[Tensor, "row new language"], Bool[Tensor, "row position"], DynamicCache]:
    """Return what is left to be read of prefixes and prompts, the mask of all, and the cache.

    All rows are padded on the left, in front of the image. So that their new positions begin at
    the same place, those with a shorter prompt read the end of their prefix again; its last token,
    whose state predicts the first one of an empty prompt, always is.
    """
    lengths = [len(prompt) for prompt in prompts]
    sizes = [len(prefix.tokens) for prefix in prefixes]
    new = max(lengths) + 1
    again = [min(new - length, size) for length, size in zip(lengths, sizes, strict=True)]
    kept = [size - count for size, count in zip(sizes, again, strict=True)]
    tokens = torch.tensor([i for prompt in prompts for i in prompt], dtype=torch.long)
    texts = vlm.embed_text(tokens.to(prefixes[0].tokens.device)).split(lengths)
    embeddings = pad_sequence(
        [
            torch.cat([prefix.tokens[count:], text])
            for prefix, count, text in zip(prefixes, kept, texts, strict=True)
        ],
        batch_first=True,
        padding_side="left",
    )
    states = torch.stack(
        [
            nn.functional.pad(prefix.states[..., :count, :], (0, 0, max(kept) - count, 0))
            for prefix, count in zip(prefixes, kept, strict=True)
        ]
    )
    cache = DynamicCache()
    for number, pair in enumerate(states.unbind(dim=1)):
        cache.update(pair[:, 0], pair[:, 1], number)
    end = max(kept) + new
    own = torch.tensor([*map(add, sizes, lengths)], device=embeddings.device)
    places = torch.arange(end, device=embeddings.device)
    return embeddings, places >= end - own[:, None], cache


@torch.inference_mode()
def read_prompt(
    vlm: VisionLanguageModel, prefixes: Sequence[ReadPrefix], prompt: Sequence[int]
) -> list[ReadPrefix | None]:
    """Return prefixes of one size with a prompt behind them, None where layers differ in shape."""
    embeddings, _, cache = behind_prefixes(vlm, prefixes, [prompt] * len(prefixes))
    vlm.hidden(embeddings, None, cache)
    tokens = [
        torch.cat([prefix.tokens[:-1], new])
        for prefix, new in zip(prefixes, embeddings, strict=True)
    ]
    return [read_prefix(each, cache, row, slice(len(each))) for row, each in enumerate(tokens)]


@dataclass(frozen=True)
class ReadImages:
    """Several images, read together.

    Attributes:
        tokens: What was read [image, prefix, language].
        cache: What it left; no part of it changes.
        last: The hidden state of each separator, which predicts a text's first token
            [image, language].
    """

    tokens: Float[Tensor, "image prefix language"]
    cache: DynamicCache
    last: Float[Tensor, "image language"]

    def prefix(self, image: int) -> ReadPrefix | None:
        """Return one of them, None where layers differ in their shapes."""
        return read_prefix(self.tokens[image], self.cache, image, slice(self.tokens.shape[1]))


@torch.inference_mode()
def read_images(
    vlm: VisionLanguageModel, patches: Float[Tensor, "image patch vision"]
) -> ReadImages:
    """Read the prefixes of images."""
    tokens, cache = vlm.embed_images(patches).tokens, DynamicCache()
    return ReadImages(tokens, cache, vlm.hidden(tokens, None, cache)[:, -1])


@torch.inference_mode()
def nll_behind(
    vlm: VisionLanguageModel, images: ReadImages, rows: Int64[Tensor, "batch"], texts: Batch
) -> Float32[Tensor, "target"]:
    """Return what `vlm(texts)` would, in nats, without reading the texts' first images again.

    Args:
        vlm: The model.
        images: Images that it has read.
        rows: Which of them each text is about; any of them several times.
        texts: One text a row, without segments; its patches are those of further images only.
    """
    states = _states_behind(vlm, images, rows, texts)
    targets = texts.target_rows, texts.target_columns
    return vlm.nll(states[targets], texts.input_ids[targets])


def _states_behind(
    vlm: VisionLanguageModel, images: ReadImages, rows: Int64[Tensor, "batch"], texts: Batch
) -> Float[Tensor, "batch text language"]:
    """Return the hidden states that predict the tokens of texts."""
    text = vlm.embed_text(texts.input_ids[:, :-1])  # the last token is only a target
    if texts.slot_rows is not None and texts.slot_columns is not None:
        further = vlm.embed_images(texts.patches).tokens.flatten(0, 1)
        text = text.index_put((texts.slot_rows, texts.slot_columns), further)
    separators = images.last[rows].unsqueeze(1)
    if not text.shape[1]:
        return separators
    cache = DynamicCache()
    layers: list[Any] = images.cache.layers
    for number, layer in enumerate(layers):
        cache.update(layer.keys[rows], layer.values[rows], number)
    return torch.cat([separators, vlm.hidden(text, None, cache)], dim=1)
