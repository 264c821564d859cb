"""Weights & Biases never stops a training: not when it is away, and not when it breaks."""

import os
import subprocess
import sys
from pathlib import Path

from pipeline.engine.stage import StageContext
from pipeline.progress import ConsoleReporter
from pipeline.settings import Settings
from pipeline.training.observers.tracking import open_wandb
from tests.support.forks import run_code

ROOT = Path(__file__).resolve().parents[4]


class Listener(ConsoleReporter):
    """Keeps what is said."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


def context_of(folder: Path, mode: str) -> StageContext:
    scratch = folder / "workspace" / "scratch"
    settings = Settings.model_validate({"store": str(folder), "wandb": mode})
    return StageContext({}, folder, scratch, settings, Listener())


def test_a_service_that_breaks_in_the_middle_is_told_once_and_left_alone(tmp_path: Path) -> None:
    context = context_of(tmp_path, "offline")
    logger = open_wandb(context, "pretrain", {"batch": 8})
    assert logger is not None
    logger.log_metrics({"train_nll": 1.0}, 1)
    assert isinstance(context.report, Listener)
    assert context.report.said == []
    logger.experiment.finish()  # as if somebody else had ended the run
    for step in range(2, 5):
        logger.log_metrics({"train_nll": 1.0}, step)
    logger.log_table("held_out", columns=["text"], data=[["a"]])
    logger.finalize("success")
    logger.close()
    (told,) = context.report.said
    assert "wandb stopped" in told
    assert "going on" in told


REPORT_FIRST = """
from pathlib import Path
from pipeline.training.observers.tracking import RunReport, log_report, open_wandb
from tests.unit.pipeline.training.test_tracking import context_of
context = context_of(Path("."), "offline")
report = RunReport("report", "<p>A page.</p>", "a.html", {}, ["image"], [])
log_report(context.settings, report, context.report.say)
logger = open_wandb(context, "pretrain", {"batch": 8})
assert logger is not None, context.report.said
logger.close()
"""


def test_a_training_after_the_report_of_another_stays_offline(tmp_path: Path) -> None:
    in_a_process(REPORT_FIRST, tmp_path)
    found = sorted((tmp_path / "work/wandb/wandb").glob("offline-run-*"))
    assert len(found) == 2


AWAY = """
from pathlib import Path
from pipeline.training.observers.tracking import RunReport, log_report, open_wandb
from tests.unit.pipeline.training.test_tracking import context_of
context = context_of(Path("."), "online")
assert open_wandb(context, "pretrain", {"batch": 8}) is None
report = RunReport("report", "<p>A page.</p>", "a.html", {}, ["image"], [])
log_report(context.settings, report, context.report.say)
print([line for line in context.report.said if "going on" in line])
"""


# Without our own limits it would try for a minute and a half, twice.
def test_a_place_that_nobody_listens_at_is_given_up_soon(tmp_path: Path) -> None:
    address = {"WANDB_API_KEY": "0123456789" * 4, "WANDB_BASE_URL": "http://127.0.0.1:9"}
    assert in_a_fork(AWAY, tmp_path, **address).count("going on") == 2


def in_a_process(code: str, folder: Path) -> str:
    """Run code in a process of its own, because wandb keeps what its first run was told."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env={**without_wandb(), "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def in_a_fork(code: str, folder: Path, **variables: str) -> str:
    """Run code in a forked process, whose first run of wandb it is: 6 seconds less."""
    there = f"import os; os.chdir({str(folder)!r})\n"
    done = run_code(there + code, {**without_wandb(), **variables}, 100)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def without_wandb() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if not key.startswith("WANDB")}


NAMED = """
from pathlib import Path
from pipeline.training.observers.tracking import open_wandb
from tests.unit.pipeline.training.test_tracking import context_of
context = context_of(Path("."), "offline")
logger = open_wandb(context, "pretrain", {"batch": 8})
logger.log_metrics({"loss": 1.0, "val_nll": 2.0, "expert_0_usage": 0.5, "mfu": 0.1}, 1)
logger.log_table("held_out", columns=["text"], data=[["a"]])
print(context.report.said)
print(sorted(logger.experiment.summary.keys()), logger.experiment.config["batch"])
logger.close()
"""


def test_metrics_of_a_kind_share_a_section_and_nothing_is_warned_of(tmp_path: Path) -> None:
    told = in_a_fork(NAMED, tmp_path)
    for name in ("training/loss", "validation/nll", "experts/0_usage", "speed/mfu", "held_out"):
        assert f"'{name}'" in told
    assert told.strip().endswith("8")
    assert "anonymous" not in told
    assert "wandb stopped" not in told
