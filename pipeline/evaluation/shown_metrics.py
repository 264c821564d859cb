"""How metrics are shown: their order, labels and places, one line for each."""

from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True)
class ShownMetric:
    """One metric of the `metrics` table, as people see it.

    Attributes:
        label: Its title in the report.
        main: Whether `phivision scores` shows it without `--all`.
        card: Whether it is in the model card.
        chart: Whether the report draws it before the metrics that are not listed here.
        heading: Its column in `phivision compare`, "" if it has none.
        kind: The predictions whose `score` it averages (`caption` or `answer`), so that two runs
            can be compared text by text; "" if there are none.
    """

    label: str
    main: bool = False
    card: bool = False
    chart: bool = False
    heading: str = ""
    kind: str = ""


# In the order in which they are shown everywhere. A metric that is not here is still in
# `phivision scores --all`, in SQL and in the report's table.
SHOWN_METRICS = MappingProxyType(
    {
        "cider_d": ShownMetric(
            "CIDEr-D of captions",
            main=True,
            card=True,
            chart=True,
            heading="CIDEr-D",
            kind="caption",
        ),
        "greedy_cider_d": ShownMetric(
            "CIDEr-D of greedy captions, where others are drawn beside them", main=True, card=True
        ),
        "answer_accuracy": ShownMetric(
            "Share of answers right",
            main=True,
            card=True,
            chart=True,
            heading="answers right",
            kind="answer",
        ),
        "pope_accuracy": ShownMetric(
            "POPE: share of presence questions right", main=True, chart=True
        ),
        "pope_f1": ShownMetric("POPE: F1"),
        "rouge_l": ShownMetric("ROUGE-L of captions", main=True, card=True, chart=True),
        "bleu_4": ShownMetric("BLEU-4 of captions", main=True, card=True),
        **{f"bleu_{n}": ShownMetric(f"BLEU-{n} of captions") for n in (3, 2, 1)},
        "chair_i": ShownMetric(
            "CHAIR-i: named objects that are not there (lower is better)", main=True, chart=True
        ),
        "chair_s": ShownMetric("CHAIR-s: captions with such an object (lower is better)"),
        "image_choice": ShownMetric("Share of images found among others", main=True, chart=True),
        "pointing": ShownMetric(
            "Share of what mattered for a word that lies on the object it names", main=True
        ),
        "pointing_game": ShownMetric(
            "Share of named objects on which the patch lies that mattered most"
        ),
        "eos_rate": ShownMetric("Share of texts that end by themselves", main=True, card=True),
        "caption_nll": ShownMetric(
            "Negative log-likelihood of captions (lower is better)",
            chart=True,
            heading="caption NLL",
        ),
        "nll": ShownMetric(
            "Negative log-likelihood of held-out text (lower is better)",
            main=True,
            card=True,
            chart=True,
        ),
        "length_ratio": ShownMetric("Length of captions against people's"),
        "repetition": ShownMetric("Share of repeated word groups (lower is better)"),
        "answer_length_ratio": ShownMetric("Length of answers against people's"),
        "answer_repetition": ShownMetric(
            "Share of repeated word groups in answers (lower is better)"
        ),
    }
)
