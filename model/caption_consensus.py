"""Captions on which people would agree, by the captions of similar training images.

The consensus caption of Devlin et al. 2015, "Exploring Nearest Neighbor Approaches for Image
Captioning" (arXiv 1505.04467): the candidate that is most similar to the captions of similar
training images. There the candidates are captions of the nearest ones; here a model may have
written them. Similarity is that of CIDEr (Vedantam et al. 2015, arXiv 1411.5726): the cosine of
n-grams weighted by their rarity among the training captions, the mean over n of 1 to 4.

How much each training image counts is learned: a ridge regression (Hoerl and Kennard 1970), in its
dual form, predicts the n-grams of an image's captions from its embedding.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path

import torch
from jaxtyping import Float, Float16
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from model.errors import ModelError
from model.training_reference import pool

EMBEDDINGS, CAPTIONS = "consensus.safetensors", "consensus.json"
NEAREST = 80  # training images whose captions are candidates where no model writes
RIDGE = 0.5  # beside cosines of embeddings, which are 1 between an image and itself
LONGEST = 4  # words of an n-gram
_KEY = "pooled"
# Thai and Lao, Burmese, Khmer, Japanese, Chinese: written without blanks, so each character counts.
_ALONE = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_ALONE}]|(?:(?![{_ALONE}])\w)+(?:'\w+)?")
Grams = dict[tuple[str, ...], float]


class CaptionConsensus:
    """Training images with their captions, which judge captions of an image.

    `RIDGE` was chosen on training images of Flickr8k, each judged by others:
    docs/photograph_trials.md.

    Args:
        pooled: Embeddings of the images from `model.training_reference.pool`.
        captions: The captions of each of these images, at least one.
    """

    def __init__(
        self, pooled: Float16[Tensor, "image vision"], captions: Sequence[Sequence[str]]
    ) -> None:
        self.pooled, self.captions = pooled, captions
        self._mean = pooled.float().mean(dim=0)
        self._places = nn.functional.normalize(pooled.float() - self._mean, dim=-1)

    def choose(self, patches: Float[Tensor, "patch vision"], candidates: Sequence[str]) -> int:
        """Return the number of the candidate that agrees most with captions of similar images.

        The first one of equal candidates is taken.

        Args:
            patches: The image's patch embeddings. Of two encoders' joined embeddings, those of the
                first are compared.
            candidates: Captions of it.
        """
        counted = [_grams(text) for text in candidates]
        judge = self._judge(self._shares(self._place(patches)), counted)
        scores = [_product(self._weighted(grams), judge) for grams in counted]
        return scores.index(max(scores))

    def caption(self, patches: Float[Tensor, "patch vision"]) -> str:
        """Return the caption of similar training images that agrees most with the others.

        Args:
            patches: See `choose`.
        """
        place = self._place(patches)
        shares = self._shares(place)
        nearest = (self._places @ place).topk(min(NEAREST, len(self._places))).indices.tolist()
        judge = self._judge(shares, [text for image in nearest for text in self._counted[image]])
        scored = []
        for image in nearest:
            texts = self._counted[image]
            for number, text in enumerate(texts):
                grams = self._weighted(text)
                # None agrees with itself.
                alone = _product(grams, grams) * shares[image] / len(texts)
                scored.append((alone - _product(grams, judge), image, number))
        _, image, number = min(scored)
        return self.captions[image][number]

    def save(self, folder: Path) -> None:
        """Write the embeddings and the captions into a bundle."""
        save_file({_KEY: self.pooled.contiguous()}, folder / EMBEDDINGS)
        (folder / CAPTIONS).write_text(json.dumps(list(map(list, self.captions))), "utf-8")

    @cached_property
    def _counted(self) -> list[list[Counter[tuple[str, ...]]]]:
        return [[_grams(text) for text in texts] for texts in self.captions]

    @cached_property
    def _rarity(self) -> Grams:
        """How rare n-grams are, as the logarithm of images by images with it."""
        seen = Counter(gram for texts in self._counted for gram in set().union(*texts))
        return {gram: self._most - math.log(count) for gram, count in seen.items()}

    @cached_property
    def _most(self) -> float:
        return math.log(len(self.captions))

    @cached_property
    def _holders(self) -> dict[tuple[str, ...], list[tuple[int, float]]]:
        """The training images whose captions have an n-gram, with its mean weight in these."""
        held: dict[tuple[str, ...], dict[int, float]] = {}
        for image, texts in enumerate(self._counted):
            for text in texts:
                for gram, value in self._weighted(text).items():
                    by_image = held.setdefault(gram, {})
                    by_image[image] = by_image.get(image, 0.0) + value / len(texts)
        return {gram: [*by_image.items()] for gram, by_image in held.items()}

    @cached_property
    def _factor(self) -> Float[Tensor, "image image"]:
        """The Cholesky factor of the training images' cosines plus the ridge."""
        ridge = RIDGE * torch.eye(len(self._places))
        return torch.linalg.cholesky(self._places @ self._places.T + ridge)

    def _place(self, patches: Float[Tensor, "patch vision"]) -> Float[Tensor, " vision"]:
        pooled = pool(patches[:, : self.pooled.shape[1]].float().cpu())
        return nn.functional.normalize(pooled - self._mean, dim=-1)

    def _shares(self, place: Float[Tensor, " vision"]) -> list[float]:
        """Return how much each training image's captions count; together they are 1."""
        cosines = (self._places @ place)[:, None]
        shares = torch.cholesky_solve(cosines, self._factor)[:, 0]
        return (shares + (1 - shares.sum()) / len(shares)).tolist()

    def _judge(self, shares: Sequence[float], texts: Iterable[Counter[tuple[str, ...]]]) -> Grams:
        """Return the predicted weights, in an image's captions, of the n-grams in texts."""
        return {
            gram: sum(shares[image] * value for image, value in self._holders.get(gram, ()))
            for gram in set().union(*texts)
        }

    def _weighted(self, counted: Counter[tuple[str, ...]]) -> Grams:
        """Return n-grams by their rarity; those of each length have a norm of 1/2."""
        values = {
            gram: count * self._rarity.get(gram, self._most) for gram, count in counted.items()
        }
        squares = [0.0] * (LONGEST + 1)
        for gram, value in values.items():
            squares[len(gram)] += value * value
        return {
            gram: value / math.sqrt(LONGEST * squares[len(gram)])
            for gram, value in values.items()
            if value
        }


def load_consensus(folder: Path) -> CaptionConsensus:
    """Return what a bundle's captions are chosen by.

    Raises:
        ModelError: The captions are not those of the embeddings.
    """
    captions = json.loads((folder / CAPTIONS).read_text("utf-8"))
    pooled = load_file(folder / EMBEDDINGS)[_KEY]
    if len(pooled) != len(captions):
        raise ModelError(
            f"{folder / CAPTIONS} has captions of {len(captions)} images, {EMBEDDINGS} has "
            f"{len(pooled)}",
            "fetch or export the bundle again",
        )
    return CaptionConsensus(pooled, captions)


def _grams(text: str) -> Counter[tuple[str, ...]]:
    words = _WORD.findall(text.lower())
    return Counter(
        tuple(words[start : start + length])
        for length in range(1, LONGEST + 1)
        for start in range(len(words) - length + 1)
    )


def _product(first: Grams, second: Grams) -> float:
    return sum(value * second.get(gram, 0.0) for gram, value in first.items())
