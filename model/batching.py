"""Many texts at once with continuous batching: a text joins and leaves the batch at any token.

One step feeds one token of every text. New texts are read together, then join the batch with what
they left in the key-value cache; texts that have ended leave it before the next step, so that a
short answer does not wait for a long one. Orca, Yu et al. 2022 (OSDI), calls this iteration-level
scheduling. The invariant: a text is the one that `model.generation.stream` gives it alone, as far
as products of another shape round alike.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers import Cache, DynamicCache, PreTrainedModel

from model.batch_cache import BatchCache, filled
from model.errors import ModelError
from model.generation import left_padded, without_images
from model.generation_configs import GenerationConfig
from model.language_parts import body_of
from model.prefixes import ReadPrefix, behind_prefixes, read_prefix
from model.token_choice import Chooser, choose, chooser
from model.vlm import VisionLanguageModel

# Settings of a published language model by which a token's scores depend on the tokens before it.
_OF_THE_PAST = (
    *("repetition_penalty", "no_repeat_ngram_size", "bad_words_ids", "sequence_bias"),
    *("min_length", "min_new_tokens", "exponential_decay_length_penalty", "guidance_scale"),
    *("begin_suppress_tokens", "forced_bos_token_id", "forced_eos_token_id"),
)


def is_plainly_greedy(language_model: PreTrainedModel) -> bool:
    """Return whether greedy decoding by transformers looks at the newest scores only.

    A published model's own settings may ask for more, such as a penalty for repetition, which
    `Batcher` does not know.
    """
    settings = language_model.generation_config
    return all(getattr(settings, name, None) in (None, 0, 1) for name in _OF_THE_PAST)


@dataclass
class TextRequest:
    """A text that is to be written.

    Attributes:
        patches: Its images [image, patch, vision]; one of zeros where it has none.
        prompt: Token ids after the first image.
        max_new_tokens: Tokens after which it is cut, counting the ending one.
        decoding: Greedy or nucleus sampling.
        take: Gets each token id, and None once at the end; returns whether to go on. It is called
            in the thread of `Batcher.step` and must not wait.
        has_image: False for a text alone.
        prefix: Its image, where that is its only one and has been read before.
        keep: Gets the image when it has been read, where that is its only one.
    """

    patches: Float[Tensor, "image patch vision"]
    prompt: Sequence[int]
    max_new_tokens: int
    decoding: GenerationConfig
    take: Callable[[int | None], bool]
    has_image: bool = True
    prefix: ReadPrefix | None = None
    keep: Callable[[ReadPrefix], None] | None = None


@dataclass
class _Row:
    """A text in the batch."""

    request: TextRequest
    choose: Chooser
    written: int = 0


@dataclass
class Batcher:
    """Writes texts side by side; all methods are called by one thread.

    Attributes:
        vlm: The model, in evaluation mode.
        eos_id: Token that ends a text.
        most: Texts in the batch, at most.
    """

    vlm: VisionLanguageModel
    eos_id: int
    most: int
    _rows: list[_Row] = field(default_factory=list)
    _cache: BatchCache | None = None
    _seen: Tensor | None = None  # which cached positions are no padding, bool [row, position]
    _next: Tensor | None = None  # embeddings of the newest tokens [row, 1, language]

    @property
    def active(self) -> int:
        """Texts in the batch."""
        return len(self._rows)

    @property
    def free(self) -> int:
        """Texts that may join."""
        return self.most - len(self._rows)

    @torch.inference_mode()
    def join(self, requests: Sequence[TextRequest]) -> None:
        """Read prompts and write the first token of each.

        Raises:
            ModelError: They are more than may join, or a text might outgrow the model.
        """
        if len(requests) > self.free:
            raise ModelError(f"{len(requests)} texts, but only {self.free} may join the batch")
        known = [request for request in requests if request.prefix is not None]
        new = [request for request in requests if request.prefix is None]
        groups = [(new, self._unread(new))] if new else []
        if known:
            prefixes = [request.prefix for request in known if request.prefix is not None]
            left = behind_prefixes(self.vlm, prefixes, [request.prompt for request in known])
            groups.append((known, left))
        for group, (_, seen, _) in groups:  # all of them, before any joins
            for length, request in zip(seen.sum(dim=1).tolist(), group, strict=True):
                self.vlm.check_length(length + request.max_new_tokens)
        for group, (embeddings, seen, cache) in groups:
            self._join(group, embeddings, seen, cache)

    def _unread(
        self, requests: Sequence[TextRequest]
    ) -> tuple[Tensor, Bool[Tensor, "row position"], DynamicCache]:
        """Return all of images and prompts, the mask of what is no padding, and an empty cache."""
        firsts = torch.stack([request.patches[0] for request in requests])
        images = torch.cat([firsts, *(request.patches[1:] for request in requests)])
        prompts = [request.prompt for request in requests]
        return *left_padded(self.vlm, images, prompts), DynamicCache()

    def _join(
        self,
        requests: Sequence[TextRequest],
        embeddings: Float[Tensor, "row new language"],
        seen: Bool[Tensor, "row position"],
        cache: DynamicCache,
    ) -> None:
        """Read what is left to be read, and write the first token of each."""
        prompts = [request.prompt for request in requests]
        pictured = torch.tensor([request.has_image for request in requests], device=seen.device)
        seen = torch.where(pictured[:, None], seen, without_images(seen, prompts))
        states = self._read(embeddings, seen, cache)
        _keep_prefixes(requests, embeddings, seen, cache)
        device = embeddings.device
        rows = [_Row(each, chooser(self.vlm, each.decoding, device)) for each in requests]
        self._add(rows, cache, seen)
        self._write(rows, states)

    @torch.inference_mode()
    def step(self) -> None:
        """Write the next token of every text in the batch."""
        if self._rows and self._cache is not None and self._seen is not None:
            assert self._next is not None
            self._seen = nn.functional.pad(self._seen, (0, 1), value=True)
            states = self._read(self._next, self._seen, self._cache)
            self._next = None
            self._write(self._rows, states)

    def _read(
        self,
        embeddings: Float[Tensor, "row new language"],
        seen: Bool[Tensor, "row position"],
        cache: Cache,
    ) -> Float[Tensor, "row language"]:
        """Return the last hidden state of each row; the cache grows in place."""
        positions = (seen.cumsum(dim=1) - 1).clamp_min(0)[:, -embeddings.shape[1] :]
        outputs = body_of(self.vlm.language_model)(
            inputs_embeds=embeddings,
            attention_mask=seen,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
        )
        return outputs.last_hidden_state[:, -1]

    def _write(self, rows: Sequence[_Row], states: Float[Tensor, "row language"]) -> None:
        """Choose the next token of rows that are the last of the batch; drop those that ended."""
        logits = self.vlm.logits(states)
        chosen = choose([row.choose for row in rows], logits)
        goes_on = [
            self._deliver(row, token)
            for row, token in zip(rows, chosen.flatten().tolist(), strict=True)
        ]
        made = self.vlm.embed_text(chosen)
        self._next = made if self._next is None else torch.cat([self._next, made])
        before = len(self._rows) - len(rows)
        self._keep([*range(before), *(before + at for at, on in enumerate(goes_on) if on)])

    def _deliver(self, row: _Row, token: int) -> bool:
        """Hand a token over and return whether the text goes on."""
        row.written += 1
        goes_on = token != self.eos_id and row.request.take(token)
        if goes_on and row.written < row.request.max_new_tokens:
            return True
        row.request.take(None)
        return False

    def _add(self, rows: Sequence[_Row], cache: DynamicCache, seen: Tensor) -> None:
        """Put rows behind those of the batch, all padded on the left to the longest."""
        if self._cache is None or self._seen is None:
            self._cache, self._seen = BatchCache(cache), seen
        else:
            self._cache.add(cache)
            length = max(self._seen.shape[1], seen.shape[1])
            self._seen = torch.cat([_longer(each, length) for each in (self._seen, seen)])
        self._rows += rows

    def _keep(self, places: list[int]) -> None:
        """Keep some rows of the batch, without the padding that all of them have."""
        if len(places) == len(self._rows):
            return
        order = filled(places)
        self._rows = [self._rows[at] for at in order]
        if not self._rows:
            self._cache = self._seen = self._next = None
            return
        assert self._cache is not None
        assert self._seen is not None
        assert self._next is not None
        index = torch.tensor(order, device=self._seen.device)
        self._seen, self._next = self._seen[index], self._next[index]
        skipped = int(self._seen.any(dim=0).int().argmax())
        self._seen = self._seen[:, skipped:]
        self._cache.keep(order, skipped)


def _keep_prefixes(
    requests: Sequence[TextRequest],
    embeddings: Float[Tensor, "row new language"],
    seen: Bool[Tensor, "row position"],
    cache: DynamicCache,
) -> None:
    """Hand over the images that were read by texts with one image each."""
    for row, request in enumerate(requests):
        is_new = request.prefix is None and request.has_image and len(request.patches) == 1
        if request.keep is None or not is_new:
            continue
        end = embeddings.shape[1] - len(request.prompt)
        size = int(seen[row].sum()) - len(request.prompt)
        prefix = read_prefix(embeddings[row], cache, row, slice(end - size, end))
        if prefix is not None:
            request.keep(prefix)


def _longer(seen: Bool[Tensor, "row position"], length: int) -> Bool[Tensor, "row longer"]:
    """Return a mask with padding in front, so that it has this length."""
    return nn.functional.pad(seen, (length - seen.shape[1], 0))
