"""Commands of ours against a hub on loopback, in processes that can be killed."""

import os
import subprocess
import sys
from pathlib import Path

from tests.e2e.chat_server import ROOT

TOKEN = "hf_planted4Uk8WzQs2Lm"


def start(
    folder: Path, endpoint: str, *arguments: str, token: str = TOKEN, **more: str
) -> subprocess.Popen[str]:
    """Start a module of ours with a hub's address; `folder/asked` lists other hosts it asks."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    environment |= {"HF_ENDPOINT": endpoint, "HF_TOKEN": token, "HF_HOME": str(folder / "home")}
    watched = [sys.executable, str(ROOT / "tests/e2e/chat_server.py"), str(folder / "asked")]
    return subprocess.Popen(
        [*watched, *arguments],
        cwd=ROOT,
        env=environment | more,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(
    folder: Path, endpoint: str, *arguments: str, token: str = TOKEN, **more: str
) -> subprocess.CompletedProcess[str]:
    """Run a module of ours as `start` does, and return what it printed."""
    with start(folder, endpoint, *arguments, token=token, **more) as process:
        out, errors = process.communicate()
    return subprocess.CompletedProcess(arguments, process.returncode, out, errors)
