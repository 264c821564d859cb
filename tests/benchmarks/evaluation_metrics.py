"""What the metrics of an evaluation cost on one core, without any model.

Run it from the repository root: `python tests/benchmarks/evaluation_metrics.py`. Made-up
predictions go through the metrics and the bootstrap just as `evaluate` does it for one condition:
captions with five references each, answers, presence questions. Printed is the time of the process,
so that other load on the machine does not count. Goal: 5,000 predictions in at most 10 s.
"""

import argparse
import os
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# A file run by its path finds only its own folder; the packages lie two folders up.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
os.environ["OPENBLAS_NUM_THREADS"] = "1"  # read when numpy is imported

from pipeline.evaluation.metrics import (
    Metric,
    answer_metrics,
    caption_metrics,
    presence_metrics,
)
from pipeline.evaluation.scorers.pope import SETS
from pipeline.evaluation.scorers.vqa import answer_accuracy
from pipeline.evaluation.scores import summarize

Row = dict[str, Any]
REFERENCES, WORDS, QUESTIONS = 5, 10, 3  # per caption; per text; per image
# As frequent as words are in captions: the n-th has a share of about 1 / n.
VOCABULARY = [f"word{n}" for n in range(3000)]
SHARES = [1 / (n + 1) for n in range(3000)]


def text(rng: random.Random, words: int = WORDS) -> str:
    """A text of about so many words, with the marks that captions have."""
    chosen = rng.choices(VOCABULARY, SHARES, k=max(1, words + rng.randint(-2, 4)))
    return " ".join(chosen).capitalize() + rng.choice([".", "", "!"])


def captions(count: int, rng: random.Random) -> list[Row]:
    """Captions, each of a picture of its own."""
    return [
        {
            "image_id": n,
            "prediction": text(rng),
            "references": [text(rng) for _ in range(REFERENCES)],
            "mentions": 2,
            "hallucinated": ["cup"] * rng.randint(0, 1),
        }
        for n in range(count)
    ]


def answers(count: int, rng: random.Random) -> list[Row]:
    """Answers, a few about each image, with ten people's answers."""
    rows = []
    for n in range(count):
        said = text(rng, 2)
        people = [rng.choice([said, text(rng, 2), "yes", "two"]) for _ in range(10)]
        rows.append({"image_id": n // QUESTIONS, "prediction": said, "references": people})
    return rows


def presence(count: int, rng: random.Random) -> list[Row]:
    """Presence questions, a few about each image."""
    return [
        {
            "image_id": n // QUESTIONS,
            "prediction": rng.choice(["yes", "no"]),
            "references": [rng.choice(["yes", "no"])],
            "sets": rng.sample(SETS, rng.randint(1, 3)),
        }
        for n in range(count)
    ]


def scored(rows: list[Row]) -> list[Metric]:
    """The metrics of answers, each scored as `evaluate` does it."""
    for row in rows:
        row["score"] = answer_accuracy(row["prediction"], row["references"])
    return answer_metrics(rows)


def main() -> None:
    """Print the seconds of every kind of prediction and of the bootstrap."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=5000, help="predictions of each kind")
    parser.add_argument("--resamples", type=int, default=2000)
    arguments = parser.parse_args()
    rng = random.Random(0)
    kinds: dict[str, tuple[list[Row], Callable[[list[Row]], list[Metric]]]] = {
        "captions": (captions(arguments.count, rng), caption_metrics),
        "answers": (answers(arguments.count, rng), scored),
        "presence": (presence(arguments.count, rng), presence_metrics),
    }
    print(f"{arguments.count:,} predictions of each kind, {arguments.resamples:,} resamples")
    for name, (rows, measured) in kinds.items():
        started = time.process_time()
        found = measured(rows)
        half = time.process_time()
        metrics = summarize("finetune", {"real": found}, arguments.resamples, 0)
        ended = time.process_time()
        print(
            f"{name:<9} {half - started:5.2f} s metrics + {ended - half:5.2f} s intervals of "
            f"{len(metrics)} metrics = {ended - started:5.2f} s"
        )


if __name__ == "__main__":
    main()
