"""What all tests share: one thread per process, the tiny recipe, the whole demo run once."""

import gc
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings as hypothesis_settings
from xdist.scheduler import LoadScopeScheduling

from tests.support.forks import run_command

# None of a million objects that the tests' imports create is garbage. Looking through them while
# they are made takes each process of `make test` seconds, and so does every test's turn later.
gc.disable()

# Several processes on two cores: torch's own threads would only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "180")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Models of seconds see nothing; the tests of the gate say otherwise.
os.environ.setdefault("PHIVISION_PUBLISH_ANYWAY", "true")

# Properties are about results; how long one example takes depends on what runs beside it.
hypothesis_settings.register_profile("phivision", deadline=None)
hypothesis_settings.load_profile("phivision")

# Every stage in seconds; what comes out says nothing, but every stage really ran.
TINY: Mapping[str, object] = {
    "images.source.train": 60,
    "images.source.test": 12,
    "images.validation_share": 0.1,
    "backbones.clip_width": 32,
    "backbones.clip_layers": 1,
    "backbones.clip_text_width": 32,
    "backbones.clip_text_layers": 1,
    "backbones.clip_embed": 32,
    "backbones.clip_epochs": 1,
    "backbones.clip_batch": 16,
    "backbones.lm_width": 32,
    "backbones.lm_layers": 1,
    "backbones.lm_heads": 2,
    "backbones.lm_epochs": 1,
    "features.layer": -1,
    "features.rows_per_shard": 32,
    "pretrain.batch": 16,
    "pretrain.micro_batch": 16,
    "pretrain.epochs": 1,
    "pretrain.validate_every": 4,
    "finetune.least_image_gain": 0,
    "finetune.batch": 16,
    "finetune.micro_batch": 16,
    "finetune.epochs": 1,
    "finetune.validate_every": 4,
    "evaluate.images": 6,
    "evaluate.questions": 6,
    "evaluate.max_new_tokens": 8,
    "evaluate.resamples": 50,
}


class Cli:
    """Runs `phivision` as a user does, in a process of its own, on one store."""

    def __init__(self, store: Path, **environment: str) -> None:
        self.store = store
        self.environment = {
            **os.environ,
            "PHIVISION_STORE": str(store),
            "PHIVISION_WANDB": "disabled",
            "COLUMNS": "200",
            **environment,
        }

    def __call__(self, *arguments: str, timeout: float = 900) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "flows.cli", *arguments]
        return subprocess.run(
            command,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def ok(self, *arguments: str, timeout: float = 900) -> str:
        """Run a command that must succeed and return what it printed."""
        done = self(*arguments, timeout=timeout)
        assert done.returncode == 0, f"{arguments}\n{done.stdout}\n{done.stderr}"
        return done.stdout


class ForkedCli(Cli):
    """The same in a process forked from one that has loaded the libraries: 6 seconds less."""

    def __call__(self, *arguments: str, timeout: float = 900) -> subprocess.CompletedProcess[str]:
        return run_command(arguments, self.environment, timeout)


def assignments(changes: Mapping[str, object]) -> list[str]:
    """Return recipe changes as `--set` arguments."""
    return [part for key, value in changes.items() for part in ("--set", f"{key}={value}")]


# The files whose tests look at the one whole run of the demo, and others that take minutes.
DEMO_FILES = ("test_demo.py", "test_readme.py", "test_secrets.py", "test_deployments_page.py")
TINY_FILES = ("test_tiny_runs.py", "test_golden_texts.py", "test_docs_commands.py")  # of a tiny one
LONG_FILES = (
    *TINY_FILES,
    *("test_server.py", "test_processes.py", "test_postgres.py", "test_notifications.py"),
    *("test_fan_out.py", "test_known_tokens.py", "test_two_processes.py", "test_surroundings.py"),
    *("test_export_llava.py", "test_loop.py", "test_foreign_files.py", "test_verify_and_gc.py"),
)
_BEGUN = pytest.StashKey[bool]()


class ByFile(LoadScopeScheduling):
    """Keeps a file's tests in one process, and the files that share a whole run in one."""

    def _split_scope(self, nodeid: str) -> str:
        path = nodeid.split("::", 1)[0]
        if path.endswith(DEMO_FILES):
            return "demo"
        if path.endswith(TINY_FILES):
            return "tiny"
        return "faults" if path.startswith("tests/faults/") else path


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Let the process that begins with the demo have a core of its own; any of them may be it."""
    if "PYTEST_XDIST_WORKER" in os.environ and _BEGUN not in item.config.stash:
        item.config.stash[_BEGUN] = True
        os.nice(0 if item.path.name in DEMO_FILES else 10)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByFile:
    """Share the tests out over the processes of `make test`."""
    return ByFile(config, log)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the demo, which takes longest, and end with what takes seconds.

    A long file that came last would be waited for by processes with nothing left to do.
    """
    first = {name: place for place, name in enumerate((*DEMO_FILES, *LONG_FILES))}

    def place(item: pytest.Item) -> int:
        takes_seconds = "faults" not in item.path.parts
        return first.get(item.path.name, len(first) + takes_seconds)

    items.sort(key=place)


def pytest_collection_finish() -> None:
    """Let the garbage collector look at what tests make, and only at that."""
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session")
def tiny() -> Mapping[str, object]:
    return TINY


@pytest.fixture(scope="session")
def realdata() -> Path:
    folder = os.environ.get("PHIVISION_REALDATA")
    if not folder:
        pytest.skip("PHIVISION_REALDATA names no folder with real COCO and LLaVA data")
    return Path(folder)


# -- what several files share: bundles, a Hub, stores, the inputs of training -------------------
pytest_plugins = (
    "tests.support.bundle_fixtures",
    "tests.support.hub_fixtures",
    "tests.support.store_fixtures",
    "tests.support.training_fixtures",
)
