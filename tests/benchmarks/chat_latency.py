"""How long a person waits for the first word of the chat, alone and in a crowd.

Run it from the repository root on a store with a published assistant, such as `make demo` leaves:
`python tests/benchmarks/chat_latency.py --store .phivision`. The chat is served as `phivision chat`
serves it, and asked over HTTP as its page asks: the image is uploaded before, and the clock runs
from the question to the first piece of the streamed answer. In the crowd each one asks something
else at the same moment. Every answer is compared with `ask`'s. Goal: 0.5 s alone.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

# A file run by its path finds only its own folder; the packages lie two folders up.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import httpx

from flows.commands.assistant import open_assistant
from flows.commands.example_images import write_examples
from pipeline.errors import PipelineError
from pipeline.publishing.export import trace
from pipeline.publishing.gate import published_manifest
from pipeline.settings import Settings
from storage.store.artifacts import ArtifactStore
from tests.e2e.chat_client import upload
from tests.e2e.chat_server import serving


class Question(NamedTuple):
    """A question about an uploaded image, and `ask`'s answer."""

    path: str
    text: str
    answer: str


class Wait(NamedTuple):
    """Seconds from a question to the first piece of its answer and to its end."""

    first: float
    whole: float


def ask(address: str, question: Question) -> Wait:
    """Ask and return how long it took.

    Raises:
        SystemExit: The answer is not `ask`'s.
    """
    body = {"message": {"text": question.text, "files": [question.path]}}
    first, last = 0.0, ""
    with httpx.Client(base_url=address, timeout=120) as client:
        start = time.perf_counter()
        event = client.post("/gradio_api/call/v2/chat", json=body).json()["event_id"]
        with client.stream("GET", f"/gradio_api/call/chat/{event}") as events:
            for line in events.iter_lines():
                if line.startswith("data:"):
                    last = line.removeprefix("data:")
                    first = first or time.perf_counter() - start
        whole = time.perf_counter() - start
    if json.loads(last)[0]["text"] != question.answer:
        sys.exit(f"{question.text} was answered {last}, not {question.answer}")
    return Wait(first, whole)


def questions_of(settings: Settings, address: str, folder: Path, count: int) -> list[Question]:
    """Upload test images and return one question about each."""
    store = ArtifactStore(settings.store, settings.work / "cache", settings.cache_bytes)
    write_examples(trace(store, published_manifest(store)), folder, count)
    assistant = open_assistant(settings, None)
    found = []
    with httpx.Client(base_url=address, timeout=60) as client:
        for entry in json.loads((folder / "examples.json").read_text()):
            data = (folder / entry["image"]).read_bytes()
            path = upload(client, data, entry["image"]).json()[0]
            found.append(Question(path, entry["question"], assistant.ask(data, entry["question"])))
    return found


def report(name: str, waits: Sequence[Wait]) -> None:
    """Print median and worst."""
    for what, seconds in (
        ("first word", [wait.first for wait in waits]),
        ("whole answer", [wait.whole for wait in waits]),
    ):
        middle, worst = statistics.median(seconds), max(seconds)
        print(f"{name:<12} {what:<13} median {middle:.3f} s, longest {worst:.3f} s")


def main() -> None:
    """Print how long one waits alone and among others."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--store", default=os.environ.get("PHIVISION_STORE") or ".phivision")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--crowd", type=int, default=20)
    options = parser.parse_args()
    settings = Settings(store=options.store)
    try:
        published_manifest(ArtifactStore(settings.store, settings.work / "cache"))
    except PipelineError as error:
        print(f"nothing to measure: {error}")  # the other benchmarks need no store
        return
    count = max(options.repeats, options.crowd)
    with tempfile.TemporaryDirectory(prefix="phivision-bench-") as name:
        arguments = ["flows.cli", "chat", "--store", options.store, "--port", "0"]
        with serving(Path(name) / "asked", arguments, os.environ) as address:
            asked = questions_of(settings, address, Path(name) / "examples", count)
            report("alone", [ask(address, question) for question in asked[: options.repeats]])
            crowd = asked[: options.crowd]
            with ThreadPoolExecutor(len(crowd)) as pool:
                waits = list(pool.map(lambda question: ask(address, question), crowd))
            report(f"{len(crowd)} at once", waits)


if __name__ == "__main__":
    main()
