"""Our scores beside the official ones, on real captions and published figures."""

import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.evaluation.scorers.captions import score_captions
from pipeline.evaluation.scorers.ptb_tokenizer import PUNCTUATION, ptb_tokens, tokenize

pytestmark = [
    pytest.mark.realdata,
    pytest.mark.skipif(
        not os.environ.get("PHIVISION_REALDATA"),
        reason="PHIVISION_REALDATA names no folder of real data",
    ),
]

OFFICIAL_NAMES = {
    "bleu_1": "Bleu_1",
    "bleu_2": "Bleu_2",
    "bleu_3": "Bleu_3",
    "bleu_4": "Bleu_4",
    "rouge_l": "ROUGE_L",
    "cider_d": "CIDEr",  # pycocoevalcap's CIDEr is the D variant
}


@pytest.fixture(scope="module")
def metrics_folder() -> Path:
    return Path(os.environ["PHIVISION_REALDATA"]) / "metrics"


@pytest.fixture(scope="module")
def official(metrics_folder: Path) -> dict[str, Any]:
    return json.loads((metrics_folder / "fakecap_subset_official_scores.json").read_text("utf-8"))


@pytest.fixture(scope="module")
def golden(metrics_folder: Path) -> list[tuple[str, str]]:
    text = (metrics_folder / "ptb" / "raw_tab_tokenized.tsv").read_bytes().decode("utf-8")
    pairs = [line.split("\t") for line in text.rstrip("\n").split("\n")]
    return [(raw, tokens) for raw, tokens in pairs]


def test_tokens_are_those_of_the_java_tokenizer(golden: list[tuple[str, str]]) -> None:
    different = [(raw, java) for raw, java in golden if " ".join(ptb_tokens(raw)) != java]
    assert len(golden) > 10_000
    # One caption ends in "D.C."; whether Java doubles that dot hangs on the caption behind it.
    assert len(different) <= 1, different


def test_scored_tokens_are_the_same_on_every_line(golden: list[tuple[str, str]]) -> None:
    different = [
        raw
        for raw, java in golden
        if tokenize(raw) != [token for token in java.split(" ") if token not in PUNCTUATION]
    ]
    assert different == []


def test_scores_equal_the_official_ones(official: dict[str, Any]) -> None:
    images = official["per_image"]
    scores = score_captions(
        [image["hypothesis"] for image in images], [image["references"] for image in images]
    )
    for ours, theirs in OFFICIAL_NAMES.items():
        assert scores.corpus[ours] == pytest.approx(official["scores"][theirs], rel=1e-9)
        np.testing.assert_allclose(
            scores.per_image[ours], [image[theirs] for image in images], rtol=1e-9, atol=1e-12
        )


def test_published_nlg_eval_figures(metrics_folder: Path) -> None:
    published = json.loads((metrics_folder / "published_scores.json").read_text("utf-8"))
    corpus = published["nlg_eval_corpus"]
    hypotheses = (metrics_folder / corpus["hyp"]).read_text("utf-8").splitlines()
    columns = [(metrics_folder / name).read_text("utf-8").splitlines() for name in corpus["refs"]]
    scores = score_captions(hypotheses, list(zip(*columns, strict=True)))
    for ours, theirs in OFFICIAL_NAMES.items():
        assert scores.corpus[ours] == pytest.approx(corpus[theirs], abs=1e-6)

    single = published["nlg_eval_single"][0]
    alone = score_captions([single["hyp"]], [single["refs"]])
    for ours, theirs in OFFICIAL_NAMES.items():
        assert alone.corpus[ours] == pytest.approx(single[theirs], abs=1e-6)


def test_five_thousand_images_take_seconds(metrics_folder: Path) -> None:
    path = metrics_folder / "karpathy_test_captions_part.json"
    images = json.loads(path.read_text("utf-8"))
    references = [image["captions"] for image in images]
    hypotheses = [captions[0] for captions in references[1:] + references[:1]]
    started = time.process_time()
    scores = score_captions(hypotheses, references)
    seconds = time.process_time() - started
    print(f"{len(references)} images, {sum(map(len, references))} references: {seconds:.1f} s")
    assert seconds < 10
    # Another image's caption is worth little, a human's own one much more.
    assert scores.corpus["cider_d"] < 0.2
