"""The texts that a model writes under all conditions, each image and each text computed once.

A text depends on its images and its prompt alone. So conditions share work: the caption under
`shuffled` is the one of another image under `real`, and without an image all captions are one.
Images are read in groups, and everything that is asked about them follows. Texts are written with
continuous batching (`model.batching`): one that has ended makes room for the next.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby, islice
from typing import NamedTuple

import torch

from model.batching import Batcher, TextRequest, is_plainly_greedy
from model.bundle import decoding_of
from model.generation import Generated, evaluating, generate
from model.generation_configs import GenerationConfig, TopPConfig
from model.prefixes import ReadPrefix, read_images, read_prompt
from model.vlm import VisionLanguageModel
from pipeline.evaluation.conditions import Shown
from pipeline.evaluation.image_groups import by_images
from pipeline.evaluation.tasks import Task
from pipeline.recipe.parts import EvaluatePart

# New texts join when this share of the places is free: to join takes a pass of its own, whose fixed
# cost several texts should share.
JOINING = 0.25


class Wanted(NamedTuple):
    """What a text depends on.

    Attributes:
        images: What `Shown.image` returned for its images, the first one first.
        prompt: Token ids after the first image.
        draw: 0 for the text that beams or greedy decoding give, else the seed it is drawn with.
    """

    images: tuple[int, ...]
    prompt: tuple[int, ...]
    draw: int = 0

    def decoding(self, evaluate: EvaluatePart) -> GenerationConfig:
        """Return how its tokens are chosen."""
        if not self.draw:
            return decoding_of(evaluate.beams)
        return TopPConfig(top_p=1, temperature=evaluate.sample_temperature, seed=self.draw)


@dataclass
class _Text:
    """A text being written."""

    wanted: Wanted
    most: int
    finished: list[tuple[Wanted, Generated]]
    ids: list[int] = field(default_factory=list)

    def take(self, token: int | None) -> bool:
        """Take a token, or the end."""
        if token is not None:
            self.ids.append(token)
        else:
            # The ending token is counted, but not given.
            self.finished.append((self.wanted, Generated(self.ids, len(self.ids) < self.most)))
        return True


def write_texts(
    vlm: VisionLanguageModel,
    tasks: Sequence[Task],
    shown: Shown,
    conditions: Sequence[str],
    evaluate: EvaluatePart,
    eos_id: int,
    device: str,
) -> Iterator[tuple[str, Task, list[Generated]]]:
    """Yield condition, task and texts, in the order in which texts are finished.

    A question has one text. A caption has a further one for each that is drawn beside it.

    Args:
        vlm: The model.
        tasks: What it is asked.
        shown: Patch embeddings by condition.
        conditions: The conditions.
        evaluate: How many texts are written side by side, their length, and beams.
        eos_id: Token that ends a text.
        device: Where to compute.

    Raises:
        ModelError: A text might outgrow the model.
    """
    asked: dict[Wanted, list[tuple[str, Task]]] = {}
    draws: dict[Wanted, int] = {}
    for condition in conditions:
        for task in tasks:
            images = tuple(shown.image(row, condition) for row in (task.row, *task.more))
            wanted = Wanted(images, tuple(task.prompt))
            asked.setdefault(wanted, []).append((condition, task))
            draws[wanted] = evaluate.caption_samples if task.kind == "caption" else 0
    texts = [wanted._replace(draw=n) for wanted, count in draws.items() for n in range(count + 1)]
    plain = evaluate.beams == 1 and is_plainly_greedy(vlm.language_model)
    write = _continuously if plain else _in_batches
    with evaluating(vlm):
        for wanted, found in _together(write(vlm, texts, shown, evaluate, eos_id, device), draws):
            yield from ((condition, task, found) for condition, task in asked[wanted])


def _together(
    written: Iterator[tuple[Wanted, Generated]], draws: Mapping[Wanted, int]
) -> Iterator[tuple[Wanted, list[Generated]]]:
    """Yield each text with those drawn beside it, as soon as all of them are there."""
    found: dict[Wanted, dict[int, Generated]] = {}
    for wanted, text in written:
        first = wanted._replace(draw=0)
        known = found.setdefault(first, {})
        known[wanted.draw] = text
        if len(known) == draws[first] + 1:
            del found[first]
            yield first, [known[draw] for draw in sorted(known)]


def _continuously(
    vlm: VisionLanguageModel,
    texts: Sequence[Wanted],
    shown: Shown,
    evaluate: EvaluatePart,
    eos_id: int,
    device: str,
) -> Iterator[tuple[Wanted, Generated]]:
    finished: list[tuple[Wanted, Generated]] = []
    waiting = _requests(vlm, texts, shown, evaluate, device, finished)
    batcher = Batcher(vlm, eos_id, evaluate.batch)
    while True:
        if batcher.free >= max(1, JOINING * evaluate.batch):
            joining = [*islice(waiting, batcher.free)]
            if not joining and not batcher.active:
                return
            batcher.join(joining)
        batcher.step()
        yield from finished
        finished.clear()


def _requests(
    vlm: VisionLanguageModel,
    texts: Sequence[Wanted],
    shown: Shown,
    evaluate: EvaluatePart,
    device: str,
    finished: list[tuple[Wanted, Generated]],
) -> Iterator[TextRequest]:
    """Yield texts to be written; the images of as many as are written side by side are held."""
    for images, group in by_images(texts, lambda text: text.images[0], evaluate.batch):
        patches = shown.patches_of(images).to(device)
        read = read_images(vlm, patches)
        prefixes = {image: read.prefix(number) for number, image in enumerate(images)}
        del read
        prompted = _prompted(vlm, prefixes, group)
        # Similar prompts join together, so that little is padded.
        for wanted in sorted(group, key=lambda text: (len(text.prompt), text)):
            several = len(wanted.images) > 1
            at = images.index(wanted.images[0])
            own = shown.patches_of(wanted.images).to(device) if several else patches[at : at + 1]
            text = _Text(wanted, evaluate.max_new_tokens, finished)
            prefix = prompted.get(wanted._replace(draw=0))
            yield TextRequest(
                own,
                () if prefix else wanted.prompt,
                evaluate.max_new_tokens,
                wanted.decoding(evaluate),
                text.take,
                prefix=prefix or (None if several else prefixes[wanted.images[0]]),
            )


def _prompted(
    vlm: VisionLanguageModel, prefixes: Mapping[int, ReadPrefix | None], group: Sequence[Wanted]
) -> dict[Wanted, ReadPrefix | None]:
    """Return images with the prompts that several texts answer, as they are read."""
    drawn = sorted({text._replace(draw=0) for text in group if text.draw})
    found: dict[Wanted, ReadPrefix | None] = {}
    for prompt in {text.prompt for text in drawn}:
        known = {
            text: prefix
            for text in drawn
            if text.prompt == prompt and (prefix := prefixes[text.images[0]]) is not None
        }
        if known:
            found |= zip(known, read_prompt(vlm, [*known.values()], prompt), strict=True)
    return found


def _in_batches(
    vlm: VisionLanguageModel,
    texts: Sequence[Wanted],
    shown: Shown,
    evaluate: EvaluatePart,
    eos_id: int,
    device: str,
) -> Iterator[tuple[Wanted, Generated]]:
    """Yield texts that wait for the longest of their batch: those of a beam search, for example."""
    ordered = sorted(texts, key=lambda text: (text.draw, len(text.prompt), text))
    groups = [[*group] for _, group in groupby(ordered, key=lambda text: text.draw)]
    size = evaluate.batch
    for part in (group[at : at + size] for group in groups for at in range(0, len(group), size)):
        images = [text.images[0] for text in part]
        images += [image for text in part for image in text.images[1:]]
        with torch.inference_mode():
            written = generate(
                vlm,
                shown.patches_of(images).to(device),
                [text.prompt for text in part],
                eos_id=eos_id,
                max_new_tokens=evaluate.max_new_tokens,
                decoding=part[0].decoding(evaluate),
            )
        yield from zip(part, written, strict=True)
