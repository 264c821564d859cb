"""In which precision a stage computes on a device.

`auto` says that either precision will do, so that word is what the fingerprint holds: an artifact
made in one precision is fresh on a machine that would take the other. The manifest's summary says
which was taken. The invariant: a stage that goes on after a kill, on whatever device, keeps the
precision it began with, so that no artifact mixes two.
"""

import json
import time
from collections.abc import Callable
from statistics import median
from typing import Any, NamedTuple

import torch

from pipeline.engine.devices import pick_device
from pipeline.engine.stage import StageContext
from storage.filesystem import replace_file

BUDGET = 1.0  # seconds for measuring
GAIN = 1.5  # times that bf16 must be faster: it rounds to 8 bits, and not all of a step is products

Works = Callable[[str], Callable[[], object]]  # what is measured, by precision


class Settled(NamedTuple):
    """The precision of a stage, fp32 or bf16, and what its summary states about it."""

    precision: str
    stated: dict[str, Any]


def settle_precision(
    wanted: str, context: StageContext, works: Works, name: str = "precision"
) -> Settled:
    """Return the precision that a recipe's choice means on this machine, and say which.

    For `auto`, a GPU takes bf16 where it has instructions for it. A CPU takes it where it is
    measured to be at least 1.5 times as fast, whatever instructions it claims to have. The choice
    is kept in the scratch folder.

    Args:
        wanted: fp32, bf16 or auto.
        context: Names the device; its scratch folder keeps the choice.
        works: Returns, for fp32 and bf16, a piece of the stage's own work.
        name: File of the scratch folder without its suffix; one for each model of a stage.
    """
    if wanted != "auto":
        return Settled(wanted, {"precision": wanted})
    kept = context.scratch / f"{name}.json"
    if kept.is_file():
        stated = json.loads(kept.read_text())
        context.report.say(f"  computing in {stated['precision']}, as this stage began")
        return Settled(stated["precision"], stated)
    stated, why = _chosen(pick_device(context.settings), works)
    replace_file(kept, json.dumps(stated).encode())
    context.report.say(f"  computing in {stated['precision']}: {why}")
    return Settled(stated["precision"], stated)


def _chosen(device: str, works: Works) -> tuple[dict[str, Any], str]:
    """Return what the summary states, and the reason in words."""
    if device == "cuda":
        has = torch.cuda.is_bf16_supported(including_emulation=False)
        why = f"this GPU has {'' if has else 'no '}instructions for bf16"
        return {"precision": "bf16" if has else "fp32"}, why
    single, half = (1e3 * seconds for seconds in measured(works("fp32"), works("bf16")))
    stated = {
        "precision": "bf16" if single >= GAIN * half else "fp32",
        "fp32_ms": float(f"{single:.3g}"),
        "bf16_ms": float(f"{half:.3g}"),
    }
    return stated, f"what takes {single:.3g} ms in fp32 takes {half:.3g} ms in bf16"


def measured(*works: Callable[[], object]) -> list[float]:
    """Return the median seconds of each, in turns for about a second; a first turn is a warm-up.

    If one turn takes longer than that second, it is the measurement.
    """
    turns: list[list[float]] = []
    began = time.perf_counter()
    while not turns or time.perf_counter() - began < BUDGET:
        turns.append([_seconds(work) for work in works])
    return [median(seconds) for seconds in zip(*(turns[1:] or turns), strict=True)]


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
