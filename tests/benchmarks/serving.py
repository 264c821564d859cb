"""Answers a second of `phivision serve`: one client after the other, and many at once.

`python tests/benchmarks/serving.py BUNDLE` serves a bundle, for example the one that the demo has
published, and asks the same questions about the same images one at a time and by 4, 16 and 32
clients, in turn, so that their ratio does not depend on the machine's load. Without a BUNDLE it
takes one of random weights.
"""

import argparse
import base64
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

# A file run by its path finds only its own folder; the packages lie two folders up.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import openai

from tests.support.tiny_bundle import image, write_bundle
from tests.unit.flows.serve.test_server import served

COLOURS = ("red", "blue", "green", "yellow")


def url(colour: str) -> dict[str, Any]:
    """Return a disc of a colour as a part of a message."""
    data = base64.b64encode(image(colour)).decode()
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}


def ask(client: openai.OpenAI, name: str, number: int) -> tuple[float, float]:
    """Return the seconds to the first piece of an answer, and to its end."""
    begun, first = time.monotonic(), 0.0
    text = {"type": "text", "text": f"What colour is object {number % 7}?"}
    messages: list[Any] = [{"role": "user", "content": [url(COLOURS[number % 4]), text]}]
    for _ in client.chat.completions.create(model=name, messages=messages, stream=True):
        first = first or time.monotonic() - begun
    return first, time.monotonic() - begun


def measure(client: openai.OpenAI, name: str, clients: int, count: int) -> float:
    """Print the figures of some clients and return the answers a second."""
    begun = time.monotonic()
    with ThreadPoolExecutor(clients) as pool:
        found = list(pool.map(lambda number: ask(client, name, number), range(count)))
    rate = count / (time.monotonic() - begun)
    firsts = sorted(first for first, _ in found)
    wholes = [whole for _, whole in found]
    print(
        f"{clients:3} clients: {rate:7.1f} answers/s, answer {statistics.median(wholes):.3f} s, "
        f"first piece {statistics.median(firsts):.3f} s (p95 {firsts[int(0.95 * count)]:.3f} s)",
        flush=True,
    )
    return rate


def main() -> None:
    """Serve, measure, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundle", type=Path, nargs="?")
    parser.add_argument("--count", type=int, default=128, help="questions of each measurement")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bundle = given.bundle or write_bundle(Path(folder) / "bundle")
        with served(bundle) as address:
            client = openai.OpenAI(base_url=address, api_key="none", max_retries=0)
            name = client.models.list().data[0].id
            measure(client, name, 4, 16)  # gets everything ready
            rates: dict[int, list[float]] = {}
            for _ in range(given.rounds):
                for clients in (1, 4, 16, 32):
                    rate = measure(client, name, clients, given.count)
                    rates.setdefault(clients, []).append(rate)
            one = statistics.median(rates[1])
            for clients in (4, 16, 32):
                print(
                    f"{clients} clients against one: {statistics.median(rates[clients]) / one:.1f}"
                )


if __name__ == "__main__":
    main()
