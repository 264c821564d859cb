"""The model card tells what the image is worth, with intervals."""

import json
import re
from pathlib import Path
from typing import Any

from pipeline.publishing.model_card import model_card
from tests.support.tiny_bundle import METRICS

PARTS = {"language model": "phi, 2.5 million parameters"}


def gap(metric: str, condition: str, value: float) -> dict[str, Any]:
    bounds = {"value": value, "low": value - 0.05, "high": value + 0.05, "count": 6}
    return {"metric": f"{metric}_gap", "condition": condition, **bounds}


def test_the_vision_gap_stands_beside_the_scores() -> None:
    gaps = [gap("cider_d", "shuffled", 0.4), gap("cider_d", "most_frequent", -0.02)]
    gaps.append({**gap("nll", "blind", 0.3), "low": None, "high": None})
    text = model_card({"name": "tiny", "parts": PARTS, "metrics": [*METRICS, *gaps]})
    assert "| `cider_d` | +0.400 [+0.350, +0.450] |  | -0.020 [-0.070, +0.030] |  |" in text
    assert "| `nll` |  | +0.300 |  |  |" in text
    assert "| `cider_d` | 0.500 [0.400, 0.600] | 0.500" in text
    assert text.index("## Scores") < text.index("## What the image is worth") < text.index("Use")


def test_it_says_what_images_the_model_was_made_for_and_that_others_are_warned_of() -> None:
    stated = {
        "what": "shapes",
        "images": 5000,
        "sentence": "It was trained on 5,000 images: shapes.",
    }
    compared = {"compared": 2000, "least_similarity": 0.98}
    card = {"name": "tiny", "parts": PARTS, "metrics": METRICS}
    text = " ".join(model_card({**card, "trained_on": stated | compared}).split())
    assert "was made for It was trained on 5,000 images: shapes." in text
    assert "warning that the answer may be a guess" in text
    assert "2,000 training images is below 0.9800" in text
    assert "too few to compare" in model_card({**card, "trained_on": stated})
    assert "made for" not in model_card(card)


def test_a_bundle_without_gaps_promises_none() -> None:
    text = model_card({"name": "tiny", "parts": PARTS, "metrics": METRICS})
    assert "What the image is worth" not in text
    assert "within this card only.\n\n## Use" in text


def test_it_names_the_models_that_the_bundle_holds(tiny_bundle: Path) -> None:
    text = model_card(json.loads((tiny_bundle / "bundle.json").read_text()))
    rows = dict(re.findall(r"^\| ([a-z ,]+) \| (.+) \|$", text, re.MULTILINE))
    assert rows["image encoder, frozen"] == "CLIP, 2 layers of width 32; 49 patches"
    assert rows["language model"].startswith("phi, ")
