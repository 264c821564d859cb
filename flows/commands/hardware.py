"""`phivision plan --hardware`: memory and time on a GPU, from the recipe alone."""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from textwrap import fill
from typing import Any, Literal, NamedTuple

from flows.printing import print_rows
from pipeline.costs.generation import (
    all_seconds,
    most_rows,
    step_seconds,
    writing_memory,
    writings,
)
from pipeline.costs.training import Memory, Training, flops, largest_micro_batch, memory, trainings
from pipeline.errors import PipelineError
from pipeline.recipe.recipe import Recipe

RESERVE = 0.1  # share of the device for CUDA itself, its libraries and holes between tensors


class Device(NamedTuple):
    """A GPU.

    Attributes:
        memory: Bytes.
        peak: Operations per second in bf16, of dense matrices, from the maker's data sheet.
        bandwidth: Bytes per second from its memory, from the same sheet.
    """

    memory: float
    peak: float
    bandwidth: float


DEVICES = {
    "L4": Device(24e9, 121e12, 0.3e12),
    "A100": Device(80e9, 312e12, 2.039e12),
    "H100": Device(80e9, 989e12, 3.35e12),
    "H200": Device(141e9, 989e12, 4.8e12),
}
# Columns that fit a terminal, and how each comes out of a row; --format json has all figures.
COLUMNS: dict[str, Callable[[dict[str, Any]], object]] = {
    "training": lambda row: row["training"] + (" *" if row["in_recipe"] else ""),
    "ckpt": lambda row: row["checkpointing"],
    "weights": lambda row: row["weights"],
    "state": lambda row: round(row["gradients"] + row["optimizer"], 2),
    "kept": lambda row: row["activations"],
    "work": lambda row: row["transient"],
    "total": lambda row: row["total"],
    "most": lambda row: row["largest_micro_batch"],
    "s/step": lambda row: row["step_seconds"],
    "time": lambda row: _time(row["hours"]),
}
LINE = 80  # characters of the notes below the table
_MEMORY = re.compile(r"(\d+(?:\.\d+)?) ?GB", re.IGNORECASE)


def print_hardware(
    recipe: Recipe, hardware: str, peak: float | None, mfu: float, style: Literal["table", "json"]
) -> None:
    """Print what each training, evaluation and chat need on a device.

    Trainings come with and without gradient checkpointing.

    Raises:
        PipelineError: There is no such device, or the share is not between 0 and 1.
    """
    device = device_of(hardware, peak)
    rows = _rows(recipe, device, mfu)
    if style == "json":
        print(json.dumps(rows, indent=1))
        return
    print("memory in GB")
    print_rows([*COLUMNS], [[_shown(cell(row)) for cell in COLUMNS.values()] for row in rows])
    for line in advice(rows, recipe):
        print(f"→ {line}")
    if hours := _hours(rows):
        parts = ", ".join(f"{stage} {each:.3g}" for stage, each in hours.items())
        print(f"→ GPU hours of this recipe: {sum(hours.values()):.3g} ({parts})")
    micro = {row["training"].split()[0]: row["micro_batch"] for row in rows}
    notes = (
        f"* the recipe's choice; ckpt: gradient checkpointing; state: gradients and AdamW's "
        f"moments. Memory is at micro_batch ({', '.join(f'{n} {c}' for n, c in micro.items())}) "
        f"of the longest rows the recipe allows; most: the largest micro_batch in "
        f"{1 - RESERVE:.0%} of {device.memory / 1e9:g} GB.",
        f"Seconds of the mean step at {mfu:.0%} of {device.peak / 1e12:g} TFLOP/s, which is an "
        f"assumption; time: of all epochs over as many images as the recipe allows, on one "
        f"device. Formula: docs/training.md",
        "evaluate, chat: kept: keys and values; a step writes a token of every row; time: where "
        "each text is written to its last token. Chat is one conversation, with "
        f"{_encoders(recipe)}.",
    )
    for note in notes:
        print("\n" + fill(note, LINE))


def gpu_hours(recipe: Recipe, hardware: str, peak: float | None, mfu: float) -> dict[str, float]:
    """Return the hours of each training and of evaluation on one device, by stage.

    They are those of `print_hardware`: operations over peak; none where it gives no time.

    Raises:
        PipelineError: There is no such device, or the share is not between 0 and 1.
    """
    return _hours(_rows(recipe, device_of(hardware, peak), mfu))


def _rows(recipe: Recipe, device: Device, mfu: float) -> list[dict[str, Any]]:
    if not 0 < mfu <= 1:
        raise PipelineError(f"--mfu {mfu} is not a share of the peak", "give 0.4, for example")
    return [*rows_of(recipe, device, mfu), *writing_rows(recipe, device, mfu)]


def _hours(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    chosen = [row for row in rows if row["in_recipe"] and row["hours"] is not None]
    return {row["training"].split()[0]: row["hours"] for row in chosen}


def _encoders(recipe: Recipe) -> str:
    backbones = recipe.backbones
    if backbones.kind == "tiny" or len(backbones.encoders) == 1:
        return "the encoder"
    return "the encoders " + " and ".join(encoder.name for encoder in backbones.encoders)


def advice(rows: Sequence[Mapping[str, Any]], recipe: Recipe) -> Iterator[str]:
    """Yield what to change where a choice of the recipe does not fit, or a faster one does.

    Args:
        rows: Those of `rows_of`, both of a training one after the other.
        recipe: What is to be trained.
    """
    for plain, again in zip(rows[:-1:2], rows[1::2], strict=False):
        chosen = next((row for row in (plain, again) if row["in_recipe"]), None)
        if chosen is None or plain["checkpointing"] is None:
            continue
        name, part = chosen["training"], chosen["training"].split()[0]
        if not chosen["fits"]:
            yield _remedy(name, part, chosen, again, recipe)
        elif chosen is again and plain["fits"] and plain["step_seconds"]:
            faster = again["step_seconds"] / plain["step_seconds"]
            yield (
                f"{name} fits without checkpointing, {faster:.1f} times as fast: "
                f"--set {part}.gradient_checkpointing=false"
            )


def _remedy(
    name: str, part: str, chosen: Mapping[str, Any], again: Mapping[str, Any], recipe: Recipe
) -> str:
    batch = getattr(recipe, part).batch
    most = max((n for n in range(1, again["largest_micro_batch"] + 1) if batch % n == 0), default=0)
    if not most:
        smaller = "quantize=nf4" if name.endswith("LoRA") else "method=lora"
        what = f": --set {part}.{smaller}" if part == "finetune" else ""
        return f"{name} does not fit at any micro_batch{what}"
    fields = [f"--set {part}.micro_batch={most}"] if most < chosen["micro_batch"] else []
    if not chosen["checkpointing"]:
        fields.append(f"--set {part}.gradient_checkpointing=true")
    return f"{name} does not fit: {' '.join(fields)}"


def device_of(hardware: str, peak: float | None) -> Device:
    """Return a device by its name or memory.

    Raises:
        PipelineError: The text is neither a known device nor an amount of memory.
    """
    device = DEVICES.get(hardware.upper())
    amount = _MEMORY.fullmatch(hardware)
    if device is None and amount is None:
        raise PipelineError(
            f"there is no device '{hardware}'",
            f"use one of {', '.join(DEVICES)}, or give its memory: --hardware 80GB",
        )
    if device is None and amount is not None:
        # The slowest known device with that much memory; a figure from --peak is better.
        needed = float(amount[1]) * 1e9
        enough = [d for d in DEVICES.values() if d.memory >= needed] or [DEVICES["H200"]]
        device = min(enough, key=lambda d: (d.peak, d.bandwidth))._replace(memory=needed)
    assert device is not None
    return device if peak is None else device._replace(peak=peak * 1e12)


def rows_of(recipe: Recipe, device: Device, mfu: float) -> Iterator[dict[str, Any]]:
    """Yield one row per training, with and without checkpointing."""
    for variant in trainings(recipe):
        packed = recipe.finetune.quantize != "none"
        methods = ("frozen", recipe.finetune.method)
        chosen = variant.method in methods and (
            variant.method != "lora" or variant.packed == packed
        )
        for checkpointing in (False, True):
            training = replace(variant, checkpointing=checkpointing)
            in_recipe = chosen and checkpointing == variant.checkpointing
            yield {
                "training": variant.name,
                "in_recipe": in_recipe,
                **_figures(training, device, mfu),
            }


def writing_rows(recipe: Recipe, device: Device, mfu: float) -> Iterator[dict[str, Any]]:
    """Yield a row for evaluation and one for chat, with the columns of a training's."""
    available = (1 - RESERVE) * device.memory
    for writing in writings(recipe):
        need, speed = writing_memory(writing), (device.peak, device.bandwidth, mfu)
        seconds = step_seconds(writing, *speed) if writing.half else None
        hours = all_seconds(writing, *speed) / 3600 if writing.half and writing.steps else None
        yield {
            "training": writing.name,
            "in_recipe": True,
            "checkpointing": None,
            **_gigabytes(need),
            "micro_batch": writing.rows,
            "fits": need.total <= available,
            "largest_micro_batch": most_rows(writing, available),
            "step_seconds": _rounded(seconds),
            "rows_per_second": _rounded(seconds and writing.rows / writing.new / seconds),
            "hours": _rounded(hours),
        }


def _figures(training: Training, device: Device, mfu: float) -> dict[str, Any]:
    need, available = memory(training), (1 - RESERVE) * device.memory
    # The peak is that of bf16; the speed of float32 depends on torch's settings.
    seconds = sum(flops(training, training.batch)) / device.peak / mfu if training.half else None
    return {
        "checkpointing": training.checkpointing,
        **_gigabytes(need),
        "micro_batch": training.micro_batch,
        "fits": need.total <= available,
        "largest_micro_batch": largest_micro_batch(training, available),
        "step_seconds": _rounded(seconds),
        "rows_per_second": _rounded(seconds and training.batch / seconds),
        "hours": _rounded(seconds and training.rows / training.batch * seconds / 3600),
    }


def _gigabytes(need: Memory) -> dict[str, float]:
    parts = {**vars(need), "total": need.total}
    return {part: round(value / 1e9, 2) for part, value in parts.items()}


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.3g}")


def _time(hours: float | None) -> str | None:
    """Return a time as minutes below an hour, else as hours."""
    if hours is None:
        return None
    return f"{60 * hours:.0f} min" if hours < 1 else f"{hours:.1f} h"


def _shown(value: object) -> object:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "-" if value is None else value
