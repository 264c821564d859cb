"""CIDEr-D, BLEU and ROUGE-L of captions: the figures of coco-caption, without Java.

The formulas and their constants are those of coco-caption (pycocoevalcap), so scores can be
compared with published ones. Sources: CIDEr-D, Vedantam et al. 2015; BLEU, Papineni et al. 2002;
ROUGE-L, Lin and Och 2004, with coco-caption's beta of 1.2. Captions are tokenized by
:mod:`pipeline.evaluation.scorers.ptb_tokenizer`.

CIDEr weights an n-gram by how few of the *evaluated* images have it in their references. The
weights mean little with a few dozen images and vanish with one: log(1 / 1) = 0, so one image
alone has CIDEr 0 whatever its caption. Print the number of images beside a CIDEr.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from math import exp, log, sqrt
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluation.scorers.ptb_tokenizer import tokenize

MAX_ORDER: Final = 4  # longest n-gram of BLEU and CIDEr
CIDER_SIGMA: Final = 6.0  # width of CIDEr-D's penalty on a difference of length, in tokens
ROUGE_BETA: Final = 1.2  # weight of recall against precision
# BLEU's guards against division by zero. They matter for a caption shorter than n tokens.
_TINY: Final = 1e-15
_SMALL: Final = 1e-9

_NGram = tuple[str, ...]
_Vector = tuple[dict[_NGram, float], list[float]]  # weight by n-gram; norm by order


@dataclass(frozen=True)
class CaptionScores:
    """Scores by metric: ``cider_d``, ``bleu_1`` to ``bleu_4`` and ``rouge_l``.

    BLEU and ROUGE-L are in 0..1, CIDEr-D in 0..10 (a published "CIDEr 100" is 1.0 here).

    Attributes:
        corpus: one figure per metric. CIDEr-D and ROUGE-L are means over images; BLEU is not, it
            adds up the counts of all images first.
        per_image: float64 array of shape (images,) per metric, in the order of the hypotheses.
        counts: float64 array of shape (images, 10), the input of :func:`bleu`; the last two
            columns are the tokens of a caption and of the reference nearest in length.
    """

    corpus: dict[str, float]
    per_image: dict[str, NDArray[np.float64]]
    counts: NDArray[np.float64]


def score_captions(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> CaptionScores:
    """Scores of one caption per image against that image's reference captions.

    A hypothesis without words scores 0 in every metric. Sentence BLEU-n of a caption with fewer
    than n tokens is close to 0 even where it equals its reference, as in coco-caption.

    Returns:
        The scores of the whole corpus and of every image.

    Raises:
        ValueError: where there are no images, the two lengths differ, or an image has no
            references or has one bare string in place of a list of them.
    """
    _check(hypotheses, references)
    hypothesis_tokens = [tokenize(caption) for caption in hypotheses]
    reference_tokens = [[tokenize(caption) for caption in captions] for captions in references]
    candidates = [_counted(tokens) for tokens in hypothesis_tokens]
    targets = [[_counted(tokens) for tokens in captions] for captions in reference_tokens]

    cider = _cider_d(candidates, targets)
    rouge = np.array(list(map(_rouge_l, hypothesis_tokens, reference_tokens)))
    counts = np.array(list(map(_bleu_counts, candidates, targets)))
    corpus_bleu, image_bleu = bleu(counts.sum(axis=0)), bleu(counts)
    orders = range(MAX_ORDER)
    return CaptionScores(
        corpus={
            "cider_d": float(cider.mean()),
            **{f"bleu_{n + 1}": float(corpus_bleu[n]) for n in orders},
            "rouge_l": float(rouge.mean()),
        },
        per_image={
            "cider_d": cider,
            **{f"bleu_{n + 1}": image_bleu[:, n].copy() for n in orders},
            "rouge_l": rouge,
        },
        counts=counts,
    )


def _check(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> None:
    if len(hypotheses) == 0:
        raise ValueError("no captions to score: there are no images")
    if len(hypotheses) != len(references):
        raise ValueError(
            f"{len(hypotheses)} hypotheses but {len(references)} sets of references; "
            "one of each is needed per image"
        )
    for image, captions in enumerate(references):
        if isinstance(captions, str) or not captions:
            raise ValueError(f"image {image} needs a list of at least one reference")


@dataclass(frozen=True)
class _Counted:
    """The number of words of a caption, and how often each of its n-grams occurs."""

    length: int
    ngrams: Counter[_NGram]


def _counted(tokens: list[str]) -> _Counted:
    # Java writes "23 3/4" as one token with a no-break space, and the official scorers split it
    # there for n-grams but not for ROUGE.
    words = " ".join(tokens).split()
    shifted = [words[start:] for start in range(MAX_ORDER)]
    by_order = (zip(*shifted[:n], strict=False) for n in range(1, MAX_ORDER + 1))
    return _Counted(len(words), Counter(chain.from_iterable(by_order)))


def _bleu_counts(candidate: _Counted, references: list[_Counted]) -> NDArray[np.float64]:
    """What BLEU adds up over images: matches per order, candidates per order, both lengths.

    A match is clipped to the largest count in any one reference. The reference length is the one
    closest to the candidate's, the shorter one in a tie.
    """
    matches = [0] * MAX_ORDER
    for ngram, count in candidate.ngrams.items():
        most = max([reference.ngrams.get(ngram, 0) for reference in references])
        matches[len(ngram) - 1] += min(count, most)
    length = candidate.length
    guesses = [max(0, length - n) for n in range(MAX_ORDER)]
    _, closest = min((abs(other.length - length), other.length) for other in references)
    return np.array([*matches, *guesses, length, closest], dtype=np.float64)


def bleu(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """BLEU-1 to BLEU-4 from the counts of one image, of many images, or of a whole corpus.

    Args:
        counts: float64 of shape (..., 10), rows of :func:`_bleu_counts` or their sum.

    Returns:
        float64 of shape (..., 4).
    """
    matches, guesses = counts[..., :MAX_ORDER], counts[..., MAX_ORDER : 2 * MAX_ORDER]
    length, reference_length = counts[..., -2], counts[..., -1]
    precisions = np.cumprod((matches + _TINY) / (guesses + _SMALL), axis=-1)
    means = precisions ** (1 / np.arange(1, MAX_ORDER + 1))
    ratio = (length + _TINY) / (reference_length + _SMALL)
    brevity = np.exp(np.minimum(0.0, 1 - 1 / ratio))  # an empty caption: exp(-1e15), exactly 0
    return means * brevity[..., np.newaxis]


def _cider_d(candidates: list[_Counted], references: list[list[_Counted]]) -> NDArray[np.float64]:
    """CIDEr-D of every image, shape (images,)."""
    images_with: Counter[_NGram] = Counter()
    for captions in references:
        images_with.update(set().union(*(caption.ngrams for caption in captions)))
    unseen = log(len(references))
    idf = {ngram: unseen - log(count) for ngram, count in images_with.items()}

    scores = np.zeros(len(candidates))
    for image, (candidate, captions) in enumerate(zip(candidates, references, strict=True)):
        vector = _tf_idf(candidate, idf, unseen)
        total = 0.0
        for caption in captions:
            # As in the official scorer, the length is the number of bigrams.
            gap = max(0, candidate.length - 1) - max(0, caption.length - 1)
            cosine = _clipped_cosine(vector, _tf_idf(caption, idf, unseen))
            total += cosine * exp(-(gap**2) / (2 * CIDER_SIGMA**2))
        scores[image] = 10 * total / len(captions)
    return scores


def _tf_idf(counted: _Counted, idf: dict[_NGram, float], unseen: float) -> _Vector:
    """Weight of every n-gram, and the Euclidean norm of the weights of each order."""
    weights = {ngram: count * idf.get(ngram, unseen) for ngram, count in counted.ngrams.items()}
    squares = [0.0] * MAX_ORDER
    for ngram, weight in weights.items():
        squares[len(ngram) - 1] += weight * weight
    return weights, [sqrt(square) for square in squares]


def _clipped_cosine(candidate: _Vector, reference: _Vector) -> float:
    """Mean over orders of the cosine, no weight of the candidate above the reference's."""
    weights, norms = candidate
    reference_weights, reference_norms = reference
    products = [0.0] * MAX_ORDER
    # In the candidate's order: a set intersection would sum in an order that changes by process.
    for ngram in [ngram for ngram in weights if ngram in reference_weights]:
        weight = reference_weights[ngram]
        products[len(ngram) - 1] += min(weights[ngram], weight) * weight
    cosines = (
        product / (norm * reference_norm)
        for product, norm, reference_norm in zip(products, norms, reference_norms, strict=True)
        if norm and reference_norm  # a side without weight has no product either
    )
    return sum(cosines) / MAX_ORDER


def _rouge_l(tokens: list[str], references: list[list[str]]) -> float:
    """ROUGE-L of one image: F-measure of the best precision and the best recall.

    The two maxima may come from different references, as in coco-caption.
    """
    common = [_longest_common_subsequence(tokens, reference) for reference in references]
    precision = max(common) / max(1, len(tokens))
    recall = max(
        shared / max(1, len(reference))
        for shared, reference in zip(common, references, strict=True)
    )
    if not precision:
        return 0.0
    return (1 + ROUGE_BETA**2) * precision * recall / (recall + ROUGE_BETA**2 * precision)


def _longest_common_subsequence(left: list[str], right: list[str]) -> int:
    """Length of the longest common subsequence, a row of the table per integer (Hyyrö 2004)."""
    places: dict[str, int] = {}
    for place, token in enumerate(left):
        places[token] = places.get(token, 0) | (1 << place)
    full = (1 << len(left)) - 1
    row = full  # a cleared bit marks a place where the subsequence grew
    for token in right:
        matched = row & places.get(token, 0)
        row = ((row + matched) | (row - matched)) & full
    return len(left) - row.bit_count()
