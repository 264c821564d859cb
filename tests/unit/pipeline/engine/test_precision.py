"""Which precision `auto` means: measured on a CPU, stated, and kept by a stage that goes on."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pipeline.engine import precision
from pipeline.engine.precision import Works, measured, settle_precision
from pipeline.engine.stage import StageContext
from pipeline.settings import Settings
from tests.support.fake_stages import Quiet


class Clock:
    """A clock that only work moves, so that no test depends on what else the machine does."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now

    def work(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(precision, "time", made)
    return made


def context_in(folder: Path, device: str = "cpu") -> StageContext:
    for name in ("out", "scratch"):
        (folder / name).mkdir(exist_ok=True)
    settings = Settings(device=device)
    return StageContext({}, folder / "out", folder / "scratch", settings, Quiet())


def taking(clock: Clock, **seconds: float) -> Works:
    """Work that takes so long, by precision."""
    return lambda chosen: lambda: clock.work(seconds[chosen])


def no_work(chosen: str) -> Callable[[], object]:
    raise AssertionError(f"{chosen} was measured")


@pytest.mark.parametrize("wanted", ["fp32", "bf16"])
def test_what_the_recipe_names_is_taken_without_a_measurement(tmp_path: Path, wanted: str) -> None:
    settled = settle_precision(wanted, context_in(tmp_path), no_work)
    assert settled == (wanted, {"precision": wanted})


@pytest.mark.parametrize(
    ("fp32", "bf16", "chosen"),
    [(0.02, 0.005, "bf16"), (0.005, 0.02, "fp32"), (0.012, 0.01, "fp32")],
    ids=["faster", "slower", "hardly faster"],
)
def test_a_cpu_takes_bf16_where_it_is_measured_to_be_faster(
    tmp_path: Path, clock: Clock, fp32: float, bf16: float, chosen: str
) -> None:
    settled = settle_precision("auto", context_in(tmp_path), taking(clock, fp32=fp32, bf16=bf16))
    stated = {"precision": chosen, "fp32_ms": 1e3 * fp32, "bf16_ms": 1e3 * bf16}
    assert settled == (chosen, stated)
    assert 1 <= clock.now < 1.1  # the measured second


def test_a_stage_that_goes_on_keeps_its_precision(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    works = taking(clock, fp32=0.02, bf16=0.002)
    began = settle_precision("auto", context_in(tmp_path), works)
    assert began.precision == "bf16"
    assert settle_precision("auto", context_in(tmp_path), no_work) == began
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: False)
    assert settle_precision("auto", context_in(tmp_path, "cuda"), no_work) == began
    other = settle_precision("auto", context_in(tmp_path, "cuda"), no_work, "of-another-model")
    assert other == ("fp32", {"precision": "fp32"})


def test_the_first_turn_is_a_warm_up_unless_it_is_the_only_one(clock: Clock) -> None:
    waits = iter([0.6, *[0.25] * 9])
    assert measured(lambda: clock.work(next(waits))) == [pytest.approx(0.25)]
    assert clock.now == pytest.approx(1.1)
    began = clock.now
    assert measured(lambda: clock.work(2.0), lambda: clock.work(0.5)) == pytest.approx([2.0, 0.5])
    assert clock.now == pytest.approx(began + 2.5)
