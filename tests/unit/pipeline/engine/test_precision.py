"""Which precision `auto` means: measured on a CPU, stated, and kept by a stage that goes on."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pipeline.engine import precision
from pipeline.engine.precision import Works, measured, settle_precision
from pipeline.engine.stage import StageContext
from pipeline.settings import Settings
from tests.support.fake_stages import Quiet


@pytest.fixture(autouse=True)
def _a_short_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "BUDGET", 0.1)


def context_in(folder: Path, device: str = "cpu") -> StageContext:
    for name in ("out", "scratch"):
        (folder / name).mkdir(exist_ok=True)
    settings = Settings(device=device)
    return StageContext({}, folder / "out", folder / "scratch", settings, Quiet())


def taking(**seconds: float) -> Works:
    """Work that takes so long, by precision."""
    return lambda chosen: lambda: time.sleep(seconds[chosen])


def no_work(chosen: str) -> Callable[[], object]:
    raise AssertionError(f"{chosen} was measured")


@pytest.mark.parametrize("wanted", ["fp32", "bf16"])
def test_what_the_recipe_names_is_taken_without_a_measurement(tmp_path: Path, wanted: str) -> None:
    settled = settle_precision(wanted, context_in(tmp_path), no_work)
    assert settled == (wanted, {"precision": wanted})


@pytest.mark.parametrize(
    ("fp32", "bf16", "chosen"),
    [(0.02, 0.002, "bf16"), (0.002, 0.02, "fp32"), (0.012, 0.01, "fp32")],
    ids=["faster", "slower", "hardly faster"],
)
def test_a_cpu_takes_bf16_where_it_is_measured_to_be_faster(
    tmp_path: Path, fp32: float, bf16: float, chosen: str
) -> None:
    settled = settle_precision("auto", context_in(tmp_path), taking(fp32=fp32, bf16=bf16))
    assert settled.precision == settled.stated["precision"] == chosen
    assert settled.stated["fp32_ms"] >= 1e3 * fp32
    assert settled.stated["bf16_ms"] >= 1e3 * bf16


def test_a_stage_that_goes_on_keeps_its_precision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    began = settle_precision("auto", context_in(tmp_path), taking(fp32=0.02, bf16=0.002))
    assert began.precision == "bf16"
    assert settle_precision("auto", context_in(tmp_path), no_work) == began
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: False)
    assert settle_precision("auto", context_in(tmp_path, "cuda"), no_work) == began
    other = settle_precision("auto", context_in(tmp_path, "cuda"), no_work, "of-another-model")
    assert other == ("fp32", {"precision": "fp32"})


def test_the_first_turn_is_a_warm_up_unless_it_is_the_only_one() -> None:
    waits = iter([0.06, *[0.001] * 1000])
    (seconds,) = measured(lambda: time.sleep(next(waits)))
    assert 0.001 <= seconds < 0.06
    calls: list[float] = []
    slow, quick = measured(lambda: time.sleep(0.2), lambda: calls.append(1.0))
    assert len(calls) == 1
    assert slow >= 0.2 > quick
