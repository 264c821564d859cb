"""What evaluation costs, beside transformers' bare `generate` for the same captions and answers.

Run it from the repository root: `python tests/benchmarks/evaluation_speed.py`. Both sides use one
model of random weights in SmolLM2-135M's shape behind a small projector, and ask it about the same
random images. The bare side is transformers' `generate` in batches of ready prefixes, under one
condition and for each of the two models; three times that, for three conditions, is the limit. Our
side is the code of the stage `evaluate` for both models and all conditions: texts, likelihoods of
captions and conversations, choices of an image, questions about presence. Random weights do not end
their texts, so lengths are drawn and forced on both sides alike (`Lengths`): captions of 13 tokens
on average, answers of 31, cut at 128. Metrics, baselines and where the model looks are left out.
Goal: at most 1.5 times the limit. Figures are processor seconds, the two sides in turns; with
`--device cuda` seconds of the clock.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# A file run by its path finds only its own folder; the packages lie two folders up.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
import transformers
from transformers import GenerationMixin

from model.generation import left_padded
from model.language_parts import body_of
from model.vlm import VisionLanguageModel
from pipeline.evaluation.evaluate import choice, predict, presence
from pipeline.evaluation.evaluation_plan import EvaluationPlan
from pipeline.evaluation.likelihood import model_likelihood
from pipeline.evaluation.tasks import Task
from tests.benchmarks.helpers.evaluation_work import (
    PATCHES,
    Lengths,
    Sizes,
    build_model,
    build_plan,
)
from tests.benchmarks.helpers.spread import spread

CONDITIONS = 3
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Measured:
    """The work of one measurement."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.positions = 0  # of the language model, with padding and rows that have ended
        self.needed = 0  # of them, those of real tokens


@contextmanager
def measured(vlm: VisionLanguageModel) -> Generator[Measured]:
    """Measure what happens inside, in processor time, or on a GPU by the clock."""
    work, by_clock = Measured(), next(vlm.parameters()).is_cuda

    def now() -> float:
        if by_clock:
            torch.cuda.synchronize()
        return time.perf_counter() if by_clock else time.process_time()

    def count(_: object, __: object, given: dict[str, torch.Tensor | None]) -> None:
        ids, embeddings = given.get("input_ids"), given.get("inputs_embeds")
        for fed in (ids, embeddings):
            if fed is not None:
                work.positions += fed.shape[0] * fed.shape[1]

    hook = body_of(vlm.language_model).register_forward_pre_hook(count, with_kwargs=True)
    began = now()
    try:
        yield work
    finally:
        work.seconds = now() - began
        hook.remove()


def bare(
    plan: EvaluationPlan, vlm: VisionLanguageModel, tasks: Sequence[Task], lengths: Lengths
) -> Measured:
    """Write texts under one condition with transformers alone; prefixes are ready."""
    language_model, evaluate = vlm.language_model, plan.evaluate
    assert isinstance(language_model, GenerationMixin)
    eos = plan.template.eos_id
    config = transformers.GenerationConfig(
        max_new_tokens=evaluate.max_new_tokens, eos_token_id=eos, pad_token_id=eos, do_sample=False
    )
    ordered = sorted(tasks, key=lambda task: len(task.prompt))
    ready = []
    with torch.inference_mode():
        for start in range(0, len(ordered), evaluate.batch):
            part = ordered[start : start + evaluate.batch]
            patches = plan.shown.show([task.row for task in part], "real").to(plan.device)
            embeddings, attention = left_padded(vlm, patches, [task.prompt for task in part])
            ready.append((embeddings, attention.long()))
        needed = 0
        with lengths.forced(), measured(vlm) as work:
            for embeddings, attention in ready:
                rows = language_model.generate(
                    inputs_embeds=embeddings, attention_mask=attention, generation_config=config
                )
                needed += int(attention.sum())
                for row in rows.tolist():
                    # The last token is not fed again.
                    needed += row.index(eos) if eos in row else len(row) - 1
    work.needed = needed
    return work


def needed_for(
    plan: EvaluationPlan, tasks: Sequence[Task], written: dict[str, list[dict[str, Any]]]
) -> int:
    """Return the positions of every distinct image, and of every distinct text behind it."""
    known = {
        (condition, row["kind"], row["image_id"], row["question_id"]): row
        for condition, rows in written.items()
        for row in rows
    }
    images, texts = set(), {}
    for condition in plan.shown.conditions:
        for task in tasks:
            image, fixed = plan.shown.image(task.row, condition), task.fixed
            row = known[condition, task.kind, fixed["image_id"], fixed["question_id"]]
            images.add(image)
            # The separator predicts a text's first token; the last one is not fed again.
            texts[image, *task.prompt] = 1 + len(task.prompt) + row["tokens"] - (not row["ended"])
    return len(images) * (PATCHES + 1) + sum(texts.values())


def ours(
    plan: EvaluationPlan, vlm: VisionLanguageModel, lengths: Lengths, *, spoke: bool
) -> dict[str, Measured]:
    """Do what `evaluate` does with a model, part by part."""
    done: dict[str, Measured] = {}

    def part(name: str, work: Callable[[], object]) -> object:
        with measured(vlm) as done[name]:
            return work()

    with lengths.forced():
        tasks = [*plan.captions, *(plan.questions if spoke else ())]
        written = part("texts", lambda: predict(plan, vlm, tasks, plan.shown.conditions))
    assert isinstance(written, dict)
    done["texts"].needed = needed_for(plan, tasks, written)
    conditions = plan.shown.conditions
    part(
        "likelihoods",
        lambda: model_likelihood(
            vlm, plan.examples, [], plan.shown, conditions, plan.evaluate, plan.device, spoke=spoke
        ),
    )
    part("choices", lambda: [choice(plan, vlm, name) for name in conditions])
    if spoke:
        part("presence", lambda: [presence(plan, vlm, name) for name in conditions])
    return done


def one_round(
    plan: EvaluationPlan, vlm: VisionLanguageModel, lengths: Lengths
) -> dict[str, Measured]:
    """Return the work of both sides, by part; pretraining's model writes captions only."""
    plain = {
        f"bare {name}": bare(plan, vlm, tasks, lengths)
        for name, tasks in (("captions", plan.captions), ("answers", plan.questions))
    }
    pretrained = ours(plan, vlm, lengths, spoke=False)
    finetuned = ours(plan, vlm, lengths, spoke=True)
    return (
        plain
        | {f"pretrain, {name}": each for name, each in pretrained.items()}
        | {f"finetune, {name}": each for name, each in finetuned.items()}
    )


def limit(work: dict[str, Measured]) -> float:
    """Return the seconds of both models' texts under all conditions, by the bare side."""
    return CONDITIONS * (2 * work["bare captions"].seconds + work["bare answers"].seconds)


def spent(work: dict[str, Measured], parts: str = "") -> float:
    """Return the seconds of our side, or of its parts of one name."""
    return sum(
        each.seconds
        for name, each in work.items()
        if not name.startswith("bare") and name.endswith(parts)
    )


def report(rounds: Sequence[dict[str, Measured]]) -> None:
    """Print medians over the rounds."""
    print(
        "                         seconds: median (spread)                positions   real tokens"
    )
    for name in rounds[0]:
        works = [work[name] for work in rounds]
        share = f"{works[0].needed / works[0].positions:.0%}" if works[0].needed else ""
        seconds = spread([work.seconds for work in works])
        print(f"{name:24} {seconds:38} {works[0].positions:10} {share:>13}")
    for parts in ("", "texts", "likelihoods"):
        ratios = spread([spent(work, parts) / limit(work) for work in rounds])
        goal = "; goal: at most 1.5" if not parts else ""
        print(f"{parts or 'all parts'} / limit ({CONDITIONS} x bare): {ratios}{goal}")


def main() -> None:
    """Build both sides, measure them in turns, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--captions", type=int, default=64)
    parser.add_argument("--questions", type=int, default=64)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--longest", type=int, default=128, help="tokens of a text, at most")
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--width", type=int, default=576, help="a multiple of 64")
    parser.add_argument("--vocabulary", type=int, default=49152)
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu", help="cpu, or cuda")
    given = vars(parser.parse_args())
    torch.set_num_threads(given.pop("threads"))
    dtype, count, device = (given.pop(name) for name in ("dtype", "rounds", "device"))
    sizes = Sizes(**given)
    with tempfile.TemporaryDirectory() as folder:
        plan = build_plan(Path(folder), sizes, device=device)
        vlm = build_model(sizes, DTYPES[dtype]).to(device)
        lengths = Lengths(vlm, sizes.longest, plan.template.eos_id)
        rounds = []
        for number in range(count):
            rounds.append(one_round(plan, vlm, lengths))
            ratio = spent(rounds[-1]) / limit(rounds[-1])
            print(f"round {number + 1}: {ratio:.2f} of the limit", flush=True)
    report(rounds)


if __name__ == "__main__":
    main()
