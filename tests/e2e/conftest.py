"""The demo and a tiny run, each made once for all end-to-end tests."""

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Cli, ForkedCli, assignments
from tests.e2e.prefect_service import AUTH, Service

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")

# Secrets of a person who runs the demo; test_secrets.py searches for them in all it leaves.
PLANTED = {
    "AWS_SECRET_ACCESS_KEY": "planted-aws-a8f3Kq0Zt7",
    "AWS_SESSION_TOKEN": "planted-session-Bv52xLw9",
    "HF_TOKEN": "hf_planted7Yc1MnQe4Rt",
    "WANDB_API_KEY": "9e6bplanted41d7c0a2f58b3e6bplanted41d7c0",
    "PHIVISION_CHAT_PASSWORD": "planted-chat-Zq8Jm3",
    "OPENAI_API_KEY": "sk-planted-Gd0Pw7Xu",
}


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Cli, str]:
    """Run the demo in a fresh store, and return commands on it with what it printed.

    With one thread: the other tests need the second core at the same time. The run starts from
    nothing, and the many commands that look at what it left are forked.
    """
    root = tmp_path_factory.mktemp("demo")
    variables = {
        "PREFECT_HOME": str(root / "prefect"),
        "PHIVISION_PUBLISH_ANYWAY": "false",
        "PHIVISION_WANDB": "offline",
    }
    printed = Cli(root / "store", **variables, **PLANTED).ok(
        "run", "--preset", "demo", timeout=3000
    )
    return ForkedCli(root / "store", **variables, **PLANTED), printed


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mapping[str, str]]:
    """What names a running Prefect server: starting one for each command would take longest."""
    service = Service(tmp_path_factory.mktemp("server"))
    try:
        service.server()
        yield {"PREFECT_API_URL": f"{service.url}/api", "PREFECT_API_AUTH_STRING": AUTH}
    finally:
        service.stop()


@pytest.fixture(scope="session")
def tiny_store(
    tmp_path_factory: pytest.TempPathFactory,
    tiny: Mapping[str, object],
    prefect_server: Mapping[str, str],
) -> Path:
    """The store of one run of the tiny recipe."""
    folder = tmp_path_factory.mktemp("tiny") / "store"
    ForkedCli(folder, **prefect_server).ok("run", *assignments(tiny))
    return folder


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """An installed Chromium without a window."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if path is None:
        pytest.skip("no Chromium is installed: apt-get install chromium")
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield chromium
        chromium.close()
