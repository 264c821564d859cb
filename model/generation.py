"""Text from images and prompts: batched with transformers' `generate`, or streamed.

Prompts of different lengths are padded on the left, in front of the image, so that the last
position of every row is its newest token. Masked positions are skipped in the count of positions,
so a row gives the same text alone as in a batch.
"""

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import transformers
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache, GenerationMixin

from model.errors import ModelError
from model.generation_configs import BeamConfig, GenerationConfig, TopPConfig
from model.prompt import IMAGE
from model.token_choice import chooser
from model.vlm import VisionLanguageModel


@dataclass(frozen=True)
class Generated:
    """One generated text.

    Attributes:
        ids: Token ids without the end-of-sequence token.
        ended: Whether the model ended the text itself, rather than being cut.
    """

    ids: list[int]
    ended: bool


def generate(
    vlm: VisionLanguageModel,
    patches: Float[Tensor, "image patch vision"],
    prompts: Sequence[Sequence[int]],
    *,
    eos_id: int,
    max_new_tokens: int,
    decoding: GenerationConfig,
    has_image: bool = True,
) -> list[Generated]:
    """One text per prompt, in order.

    Args:
        vlm: The model; it runs in evaluation mode and is left in the mode it was in.
        patches: The first image of each prompt, then the further images that prompts name, in the
            order of their places.
        prompts: Token ids after the image, `IMAGE` where a further one belongs; an empty prompt
            asks for a caption.
        eos_id: Token that ends a text.
        max_new_tokens: Tokens after which a text is cut, counting the ending one.
        decoding: Greedy, beam search or nucleus sampling. The draws of sampling depend on the
            batch a prompt is in; greedy and beam search do not.
        has_image: False for texts alone: as in training, no token sees the patches.

    Raises:
        ModelError: Prompts and images differ in number, or the text might outgrow the model.
    """
    named = len(prompts) + sum(prompt.count(IMAGE) for prompt in prompts)
    if named != len(patches):
        raise ModelError(f"the prompts are about {named} images, {len(patches)} are given")
    if not prompts:
        return []
    language_model = vlm.language_model
    assert isinstance(language_model, GenerationMixin)
    with evaluating(vlm), torch.no_grad(), _seeded(decoding, patches.device):
        embeddings, attention = left_padded(vlm, patches, prompts)
        attention = attention if has_image else without_images(attention, prompts)
        vlm.check_length(embeddings.shape[1] + max_new_tokens)
        rows = language_model.generate(
            inputs_embeds=embeddings,
            attention_mask=attention.long(),
            generation_config=_transformers_config(decoding, eos_id, max_new_tokens),
        )
    return [_until_eos(row, eos_id) for row in rows.tolist()]


def stream(
    vlm: VisionLanguageModel,
    patches: Float[Tensor, "*image patch vision"],
    prompt: Sequence[int],
    *,
    eos_id: int,
    max_new_tokens: int,
    decoding: GenerationConfig,
    has_image: bool = True,
) -> Iterator[int]:
    """Token ids of one text, each as soon as it is known; the ending token is not given.

    The text is the one `generate` gives for this image and prompt alone.

    Args:
        vlm: The model; it is in evaluation mode until the iterator ends or is closed.
        patches: The image, or several: the first one, then those that the prompt names.
        prompt: Token ids after the first image.
        eos_id: Token that ends the text.
        max_new_tokens: Tokens after which the text is cut, counting the ending one.
        decoding: Greedy or nucleus sampling.
        has_image: See `generate`.

    Raises:
        ModelError: Beam search was asked for, or the text might outgrow the model.
    """
    if isinstance(decoding, BeamConfig) and decoding.beams > 1:
        raise ModelError("beam search knows its text only at the end", "stream greedy or top_p")
    with torch.no_grad():
        shown = patches.reshape(-1, *patches.shape[-2:])
        embeddings, attention = left_padded(vlm, shown, [prompt])
    attention = attention if has_image else without_images(attention, [prompt])
    vlm.check_length(embeddings.shape[1] + max_new_tokens)
    choose = chooser(vlm, decoding, embeddings.device)
    return _stream_tokens(vlm, embeddings, attention, eos_id, max_new_tokens, choose)


def _stream_tokens(
    vlm: VisionLanguageModel,
    embeddings: Float[Tensor, "1 new language"],
    attention: Bool[Tensor, "1 position"],
    eos_id: int,
    max_new_tokens: int,
    choose: Callable[[Tensor], Tensor],
) -> Iterator[int]:
    cache = DynamicCache(config=vlm.language_model.config)
    with evaluating(vlm):
        for _ in range(max_new_tokens):
            # Entered anew for each token: the caller's code between two tokens keeps its own mode.
            with torch.no_grad():
                state = vlm.hidden(embeddings, attention, cache)[:, -1]
                token = choose(vlm.logits(state))
                embeddings = vlm.embed_text(token)
            if token.item() == eos_id:
                return
            yield int(token.item())
            attention = nn.functional.pad(attention, (0, 1), value=True)


def left_padded(
    vlm: VisionLanguageModel,
    patches: Float[Tensor, "image patch vision"],
    prompts: Sequence[Sequence[int]],
) -> tuple[Float[Tensor, "batch position language"], Bool[Tensor, "batch position"]]:
    """Embeddings [padding][patches][separator][prompt] and the mask of what is not padding."""
    prefixes = vlm.embed_images(patches).tokens
    ids = torch.tensor([max(i, 0) for prompt in prompts for i in prompt], dtype=torch.long)
    texts = vlm.embed_text(ids.to(prefixes.device)).split([len(prompt) for prompt in prompts])
    further = iter(prefixes[len(prompts) :])
    rows = [
        torch.cat([first, *_pieces(prompt, text, further)])
        for first, prompt, text in zip(prefixes[: len(prompts)], prompts, texts, strict=True)
    ]
    embeddings = pad_sequence(rows, batch_first=True, padding_side="left")
    real = [torch.ones(len(row), dtype=torch.bool, device=row.device) for row in rows]
    return embeddings, pad_sequence(real, batch_first=True, padding_side="left")


def _pieces(
    prompt: Sequence[int], text: Float[Tensor, "text language"], further: Iterator[Tensor]
) -> Iterator[Float[Tensor, "piece language"]]:
    """Yield a prompt's embeddings with the prefixes of further images at their places."""
    start = 0
    for place in (at for at, number in enumerate(prompt) if number == IMAGE):
        yield text[start:place]
        yield next(further)
        start = place + 1
    yield text[start:]


def without_images(
    attention: Bool[Tensor, "batch position"], prompts: Sequence[Sequence[int]]
) -> Bool[Tensor, "batch position"]:
    """The mask where rows have no image: of its prefix they see the separator only.

    `generate` counts positions from the separator then, training and `stream` from the patches:
    rotary embeddings, which all known families have, depend on differences only.
    """
    places = torch.arange(attention.shape[1], device=attention.device)
    starts = [attention.shape[1] - len(prompt) - 1 for prompt in prompts]
    return places >= torch.tensor(starts, device=attention.device)[:, None]


def _transformers_config(
    decoding: GenerationConfig, eos_id: int, max_new_tokens: int
) -> transformers.GenerationConfig:
    # Other settings, such as the suppressed tokens, come from the language model.
    config = transformers.GenerationConfig(
        max_new_tokens=max_new_tokens,
        eos_token_id=eos_id,
        pad_token_id=eos_id,  # fills finished rows after their end
        do_sample=isinstance(decoding, TopPConfig),
        num_beams=1,
        use_cache=True,
    )
    if isinstance(decoding, BeamConfig):
        config.num_beams = decoding.beams
        config.length_penalty = decoding.length_penalty if decoding.beams > 1 else None
    elif isinstance(decoding, TopPConfig):
        config.top_k = 0  # transformers' default of 50 would cut the nucleus
        config.top_p, config.temperature = decoding.top_p, decoding.temperature
    return config


def _until_eos(row: list[int], eos_id: int) -> Generated:
    ended = eos_id in row
    return Generated(row[: row.index(eos_id)] if ended else row, ended)


@contextmanager
def evaluating(vlm: VisionLanguageModel) -> Generator[None]:
    """Keep a model in evaluation mode, and leave it in the mode that it was in."""
    was_training = vlm.training
    vlm.eval()
    try:
        yield
    finally:
        vlm.train(was_training)


@contextmanager
def _seeded(decoding: GenerationConfig, device: torch.device) -> Generator[None]:
    # transformers draws from the global generator, whose state training needs unchanged.
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        if isinstance(decoding, TopPConfig):
            torch.manual_seed(decoding.seed)
        yield
