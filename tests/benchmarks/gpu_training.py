"""Pretraining and LoRA finetuning of Phi-2's size with random weights on one GPU, in bf16.

Run it from the repository root: `python tests/benchmarks/gpu_training.py`; `--tiny` runs the same
code on the CPU with the demo's dimensions, to see that it works. It prints the floor first, that is
how long the operations of a sample take at the device's peak, and then what was measured: samples
(captions, conversations), tokens (positions without padding) and MFU, the floor's share of the time
(`model/flops.py`; recomputed activations are not counted). Rows are random tokens with the lengths
of COCO's captions and LLaVA's conversations; batch, micro-batch and projector are the recipe's.
Goals on an H100: MFU of 45 % in pretraining and 50 % in finetuning.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import PhiConfig, PhiForCausalLM

# A file run by its path finds only its own folder; the packages lie two folders up.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from flows.commands.hardware import DEVICES
from model.batch import Batch
from model.flops import training_flops
from model.language import add_lora
from model.objectives import standard
from model.vlm import VisionLanguageModel, build_vlm, freeze
from pipeline.costs.training import Training, memory, trainings, vision_width
from pipeline.recipe.presets import preset
from pipeline.recipe.recipe import Recipe
from pipeline.training.collate import collate


@dataclass(frozen=True)
class Rows:
    """The rows of a forward pass, and how much work they are."""

    batch: Batch
    samples: int
    text_tokens: int
    targets: int


def lengths(rng: np.random.Generator, training: Training) -> tuple[int, int]:
    """Tokens of a text, and how many of them are not supervised."""
    if training.method == "frozen":
        return int(rng.integers(9, 20)), 0
    return int(rng.integers(80, 240)), 35


def made_rows(training: Training, recipe: Recipe, passes: int) -> list[Rows]:
    """Rows of random tokens for some forward passes, of similar length in each of them."""
    rng = np.random.default_rng(0)
    part = recipe.pretrain if training.method == "frozen" else recipe.finetune
    per_row, shape = (
        part.examples_per_row,
        (recipe.features.patches, vision_width(recipe)),
    )
    rows = [
        [lengths(rng, training) for _ in range(per_row)]
        for _ in range(passes * training.micro_batch)
    ]
    rows.sort(key=lambda row: sum(length for length, _ in row))  # as the feed does
    found = []
    for start in range(0, len(rows), training.micro_batch):
        chosen = rows[start : start + training.micro_batch]
        texts = [text for row in chosen for text in row]
        ids = [rng.integers(1, training.language.vocabulary, length) for length, _ in texts]
        supervised = [np.arange(length) >= asked for length, asked in texts]
        patches = torch.randn(len(chosen), *shape).half()
        batch = collate(patches, ids, supervised, [per_row] * len(chosen))
        counted = sum(map(len, ids)), int(sum(mask.sum() for mask in supervised))
        found.append(Rows(batch, len(texts), *counted))
    return [found[place] for place in rng.permutation(len(found))]


def model_of(training: Training, recipe: Recipe, device: torch.device) -> VisionLanguageModel:
    """A model with random weights, opened for training as the stage does."""
    torch.manual_seed(0)
    line = training.language
    config = PhiConfig(
        vocab_size=line.vocabulary,
        hidden_size=line.width,
        intermediate_size=line.inner,
        num_hidden_layers=line.layers,
        num_attention_heads=line.heads,
        resid_pdrop=line.dropout,
        hidden_act="gelu_pytorch_tanh" if line.fused_gelu else "gelu_new",
    )
    with device:
        lm = PhiForCausalLM(config).to(torch.bfloat16)
        width, patches = vision_width(recipe), recipe.features.patches
        vlm = build_vlm(recipe.pretrain.projector, width, patches, lm)
    if training.method == "frozen":
        freeze(vlm.language_model)
    else:
        part = recipe.finetune
        add_lora(
            vlm.language_model,
            rank=part.lora_rank,
            alpha=part.lora_alpha,
            dropout=part.lora_dropout,
            targets=part.lora_targets,
        )
    if training.checkpointing:
        vlm.enable_gradient_checkpointing()
    return vlm.to(device).train()


def time_steps(
    vlm: VisionLanguageModel, rows: list[Rows], passes: int, device: torch.device
) -> Iterator[float]:
    """Yield the seconds of each optimizer step over the rows."""
    trained = [p for p in vlm.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=True)
    for start in range(0, len(rows), passes):
        chosen = rows[start : start + passes]
        tokens = sum(each.targets for each in chosen)
        wait(device)
        began = time.perf_counter()
        for each in chosen:
            with torch.autocast(device.type, torch.bfloat16):
                found = standard(vlm, each.batch.to(device, non_blocking=True))
                loss = found.token_nll.sum() / tokens + found.auxiliary_loss / passes
            loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        wait(device)
        yield time.perf_counter() - began


def wait(device: torch.device) -> None:
    """Wait until the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure(training: Training, recipe: Recipe, given: argparse.Namespace, peak: float) -> None:
    """Print the floor of one training, then what was measured."""
    device = torch.device("cpu" if given.tiny else "cuda")
    passes = max(1, training.batch // training.micro_batch)
    rows = made_rows(training, recipe, (given.warmup + given.steps) * passes)
    samples, texts, targets = (
        sum(getattr(each, name) for each in rows) / (given.warmup + given.steps)
        for name in ("samples", "text_tokens", "targets")
    )
    per_step = passes * training.micro_batch
    flops = training_flops(
        training.size, rows=per_step, text_tokens=texts, targets=targets, before=0
    )
    checkpointing = "with" if training.checkpointing else "without"
    print(f"\n{training.name}, {training.micro_batch} rows a pass, {checkpointing} checkpointing")
    print(
        f"  floor: {flops / samples / 1e9:.4g} GFLOP a sample, {flops / 1e12:.4g} TFLOP a step of "
        f"{samples:g} samples; at the peak {samples * peak / flops:.4g} samples/s"
    )
    vlm = model_of(training, recipe, device)
    vlm.language_model.set_attn_implementation(given.attention)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    took = list(time_steps(vlm, rows, passes, device))[given.warmup :]
    seconds = statistics.median(took)
    tokens = per_step * training.prefix_tokens + texts
    print(
        f"  measured: {samples / seconds:.4g} samples/s, {tokens / seconds:.4g} tokens/s, "
        f"MFU {flops / seconds / peak:.1%}; steps of {min(took):.3g} to {max(took):.3g} s"
    )
    if device.type == "cuda":
        longest = max(each.batch.input_ids.shape[1] for each in rows)
        planned = replace(training, text=replace(training.text, longest=longest))
        used = torch.cuda.max_memory_allocated(device)
        print(f"  memory: {used / 1e9:.2f} GB; planned {memory(planned).total / 1e9:.2f} GB")


def peak_of(given: argparse.Namespace) -> float:
    """The peak in operations per second: what was given, or the data sheet's."""
    if given.peak:
        return given.peak * 1e12
    name = "" if given.tiny else torch.cuda.get_device_name()
    for known, device in DEVICES.items():
        if known in name.upper().replace("-", " ").split():
            return device.peak
    sys.exit(f"the peak of '{name or 'this CPU'}' is not known: give --peak in TFLOP/s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--tiny", action="store_true", help="the demo's dimensions on the CPU")
    parser.add_argument("--peak", type=float, help="of the device in bf16, TFLOP/s")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--micro-batch", type=int, help="rows of a pass; the recipe's if omitted")
    parser.add_argument("--per-row", type=int, help="examples of a row; the recipe's if omitted")
    parser.add_argument("--fused-gelu", action="store_true", help="Phi-2's GELU as one kernel")
    parser.add_argument(
        "--attention", choices=("sdpa", "flex_attention"), default="sdpa", help="its kernel"
    )
    given = parser.parse_args()
    if given.tiny:
        given.peak = given.peak or 0.05  # of one CPU core, about; only to have a figure
    elif not torch.cuda.is_available():
        # Not an error, so that `make bench` goes on.
        print("there is no CUDA device here; --tiny shows on the CPU that the benchmark works")
        return
    recipe = preset("demo" if given.tiny else "coco")
    if given.tiny:  # bf16 is slow on a CPU
        recipe = recipe.override({"finetune.examples_per_row": 1})
    if given.per_row:
        names = ("pretrain.examples_per_row", "finetune.examples_per_row")
        recipe = recipe.override(dict.fromkeys(names, given.per_row))
    print(f"torch {torch.__version__}, {'CPU' if given.tiny else torch.cuda.get_device_name()}")
    peak = peak_of(given)
    print(f"peak {peak / 1e12:g} TFLOP/s in bf16")
    for training in variants(recipe, given):
        try:
            measure(training, recipe, given, peak)
        except torch.cuda.OutOfMemoryError:
            print("  too large for this device")
        if not given.tiny:
            torch.cuda.empty_cache()


def variants(recipe: Recipe, given: argparse.Namespace) -> Iterator[Training]:
    """Yield what is measured: both trainings, without and with checkpointing."""
    for training in trainings(recipe):
        if training.method == "full":
            continue
        language = training.language
        if given.fused_gelu:
            language = language._replace(fused_gelu=True)
        rows = given.micro_batch or training.micro_batch
        chosen = replace(training, half=True, language=language, micro_batch=rows)
        yield from (replace(chosen, checkpointing=value) for value in (False, True))


if __name__ == "__main__":
    main()
