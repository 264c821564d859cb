"""One language model at a time, in the type that it was trained in, and never in memory twice."""

import json
import shutil
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import PhiConfig, PhiForCausalLM

from model.assistant import load_assistant
from model.language import load_language_model, saved_dtype
from model.projectors import LinearConfig
from pipeline.evaluation.evaluate import evaluate
from pipeline.progress import Ticker
from pipeline.recipe.presets import preset
from pipeline.training.example_sets import open_examples
from tests.support.tiny_bundle import image
from tests.support.training_inputs import (
    Choices,
    context_of,
    figures,
    language_models,
)
from tests.unit.pipeline.evaluation.test_evaluation_plan import write_evaluation_inputs

ROOT = Path(__file__).resolve().parents[4]
LOADING = """
import os, sys
from pathlib import Path
import torch
from model.language import load_language_model
from tests.rehearsal.process_tree import Watch, held_by
before, watch = held_by(os.getpid()).own, Watch(os.getpid(), interval=0.002)
language_model = load_language_model(Path(sys.argv[1]), torch.bfloat16)
watch.end()
print(language_model.dtype, watch.take().own - before)
"""


class Counting:
    """A reporter that looks at each note which language models there are."""

    def __init__(self) -> None:
        self.before = {id(each) for each in language_models()}
        self.seen: dict[str, list[torch.dtype]] = {}

    def say(self, text: str) -> None:
        """Nothing is shown."""

    @contextmanager
    def track(self, label: str, total: int | None, done: int = 0) -> Generator[Ticker]:
        """Look at every note."""
        yield self.tick

    def tick(self, amount: int = 1, note: str = "") -> None:
        """Write down the types of the models that came since the beginning."""
        if note:
            here = [each for each in language_models() if id(each) not in self.before]
            self.seen[note] = [each.dtype for each in here]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_evaluation_holds_one_language_model_in_the_type_of_finetuning(
    tmp_path: Path, tiny_bundle: Path, dtype: torch.dtype
) -> None:
    root = tmp_path / "in"
    write_evaluation_inputs(root, tiny_bundle, "test")
    load_language_model(tiny_bundle / "lm", dtype).save_pretrained(root / "finetune/lm")
    report = Counting()
    context = context_of(root, tmp_path / "work", report)
    evaluate(context, preset("demo").override({"evaluate.max_new_tokens": 2}).evaluate, 0)
    conditions = ("real", "shuffled", "blind")
    for stage in ("pretrain", "finetune"):
        assert report.seen[f"load the model of {stage}"] == []
        assert [report.seen[f"{stage}, {name}"] for name in conditions] == [[dtype]] * 3
    assert report.seen["draw images for the intervals"] == []


@pytest.mark.parametrize(
    "choices",
    [
        Choices(epochs=1),
        Choices("finetune", method="lora", precision="bf16", epochs=1),
        Choices("finetune", method="full", precision="bf16", epochs=1),
    ],
    ids=["pretrain", "lora", "full"],
)
def test_a_training_leaves_no_model_behind_and_saves_the_type_it_computed_in(
    inputs: Path, tmp_path: Path, choices: Choices
) -> None:
    before = {id(each) for each in language_models()}
    context = context_of(inputs, tmp_path)
    choices.run(context)
    assert not [each for each in language_models() if id(each) not in before]
    if choices.stage == "finetune":
        assert saved_dtype(context.out / "lm") == torch.bfloat16
        with safe_open(context.out / "lm/model.safetensors", "pt") as weights:
            types = {weights.get_slice(name).get_dtype() for name in weights.keys()}  # noqa: SIM118
        assert types == {"BF16"}


def test_published_weights_in_float16_compute_in_bf16(tmp_path: Path) -> None:
    for name, dtype in [("torch_dtype", "float16"), ("dtype", "bfloat16")]:
        (tmp_path / "config.json").write_text(json.dumps({name: dtype}))
        assert saved_dtype(tmp_path) == torch.bfloat16
    (tmp_path / "config.json").write_text("{}")
    assert saved_dtype(tmp_path) == torch.float32


def test_an_assistant_answers_in_the_type_that_it_was_evaluated_in(
    tmp_path: Path, tiny_bundle: Path
) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, folder)
    load_language_model(tiny_bundle / "lm", torch.bfloat16).save_pretrained(folder / "lm")
    assistant = load_assistant(folder)
    assert assistant.vlm.language_model.dtype == torch.bfloat16
    assert {p.dtype for p in assistant.vlm.vision_prefix.parameters()} == {torch.float32}
    asked = assistant.ask(image(), "Two?")
    assert asked == [*assistant.stream(image(), "Two?")][-1] != ""
    assert load_assistant(tiny_bundle).vlm.language_model.dtype == torch.float32


def test_a_language_model_is_never_in_memory_twice(tmp_path: Path) -> None:
    config = PhiConfig(
        vocab_size=2000,
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=4,
        num_attention_heads=4,
    )
    PhiForCausalLM(config).half().save_pretrained(tmp_path, max_shard_size="40MB")
    assert len([*tmp_path.glob("*.safetensors")]) > 2
    size = sum(path.stat().st_size for path in tmp_path.glob("*.safetensors"))
    # A process of its own: this one may hold memory of other tests that loading takes again.
    command = [sys.executable, "-c", LOADING, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    dtype, grown = done.stdout.split()
    assert dtype == "torch.bfloat16"
    # The conversion of some tensors is on its way at a time; files are mapped and held by nobody.
    assert 0.8 * size < int(grown) < 1.5 * size


def test_validation_is_bounded_and_always_sees_the_same_examples(
    inputs: Path, tmp_path: Path
) -> None:
    def held_out(examples: int, seed: int = 3) -> list[int]:
        part = Choices(validation=examples).part()
        context = context_of(inputs, tmp_path)
        training, validation = open_examples(
            context, part, LinearConfig(), {"caption": 1.0}, seed, text_only=True
        )
        assert len(training) == 70  # of 35 images
        return sorted(validation.example_ids.tolist())

    every = held_out(1000)
    assert len(every) == 10 == len(held_out(10))
    few = held_out(4)
    assert len(few) == 4
    assert set(few) < set(every)
    assert few == held_out(4)
    assert {*few} != {*held_out(4, seed=4)} or {*few} != {*held_out(4, seed=5)}
    context = context_of(inputs, tmp_path / "stage")
    Choices(validation=4, epochs=1).run(context)
    assert len(figures(context)["val_nll"]) == 1
