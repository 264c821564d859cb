"""Answers a second of `phivision serve`: one client after the other, and many at once.

`python tests/benchmarks/serving.py BUNDLE` serves a bundle, for example the one that the demo has
published (`phivision export DIR`), and asks about images that the server has never seen, then about
ones that it knows, by 1, 4, 16 and 32 clients in turn, so that their ratio does not depend on the
machine's load. Questions are sent by a client that takes 0.1 ms an answer (`serve_load`), else it
would be the client that is measured. Without a BUNDLE it takes one of random weights; `--long`
takes one whose language model has the size of SmolLM2-135M, with answers of 48 tokens.
"""

import argparse
import base64
import statistics
import sys
import tempfile
import time
from itertools import chain, count
from pathlib import Path

# A file run by its path finds only its own folder; the packages lie two folders up.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from model.tiny_phi import train_tokenizer
from tests.benchmarks.helpers.serving_images import scene
from tests.benchmarks.helpers.spread import ratio, spread
from tests.support.serve_load import Timed, load, post
from tests.support.serving import Server, running
from tests.support.tiny_bundle import TEXTS, write_bundle, write_card, write_clip, write_prefix

CLIENTS = (1, 4, 16, 32)
KNOWN = 8
_NEW = count(KNOWN)  # numbers of images that were never sent


def write_long(folder: Path) -> Path:
    """Write a bundle of random weights with a language model of SmolLM2-135M's size."""
    write_clip(folder / "clip")
    tokenizer = train_tokenizer(TEXTS * 3, 300, folder / "lm")
    eos = tokenizer.token_to_id("<|endoftext|>")
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=eos,
        eos_token_id=eos,
    )
    LlamaForCausalLM(config).save_pretrained(folder / "lm")
    write_prefix(folder, folder / "lm")
    write_card(folder, eos)
    return folder


def request(server: Server, image: int, text: int, tokens: int | None, *, stream: bool) -> bytes:
    """Return a question about an image."""
    data = base64.b64encode(scene(image)).decode()
    content = [
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}},
        {"type": "text", "text": f"What colour is object {text % 7}?"},
    ]
    body = {"messages": [{"role": "user", "content": content}], "stream": stream}
    longest = {} if tokens is None else {"max_tokens": tokens}
    return post(server.place, "/v1/chat/completions", body | longest)


def measure(server: Server, clients: int, requests: list[bytes]) -> tuple[float, list[Timed]]:
    """Return answers a second, and each answer's times."""
    begun = time.monotonic()
    found = load(server.place, requests, clients)
    seconds = time.monotonic() - begun
    assert all(each.status == 200 for each in found), found[0].body
    return len(found) / seconds, found


def one_round(server: Server, number: int, tokens: int | None, rates: dict) -> None:
    """Measure each number of clients with new and with known images, and print it."""
    for images in ("new", "known"):
        for clients in CLIENTS:
            asked = [
                request(
                    server,
                    next(_NEW) if images == "new" else at % KNOWN,
                    at,
                    tokens,
                    stream=True,
                )
                for at in range(number if clients > 1 else max(number // 4, 1))
            ]
            rate, found = measure(server, clients, asked)
            firsts = sorted(each.first for each in found)
            rates.setdefault((images, clients), []).append((rate, firsts))
            p95 = firsts[int(0.95 * len(firsts))]
            print(
                f"{images:5} images, {clients:2} clients: {rate:6.1f} answers/s, "
                f"answer {statistics.median(each.whole for each in found) * 1e3:6.1f} ms, "
                f"first token {statistics.median(firsts) * 1e3:6.1f} ms (p95 {p95 * 1e3:.1f} ms)",
                flush=True,
            )


def main() -> None:
    """Serve, measure, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundle", type=Path, nargs="?")
    parser.add_argument("--long", action="store_true", help="SmolLM2-135M's size, 48 tokens")
    parser.add_argument("--count", type=int, default=256, help="questions of each measurement")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    tokens = 48 if given.long else None
    with tempfile.TemporaryDirectory() as folder:
        made = write_long if given.long else write_bundle
        with running(given.bundle or made(Path(folder) / "bundle")) as server:
            asked = [request(server, at, at, tokens, stream=False) for at in range(KNOWN)]
            measure(server, 4, asked)  # gets everything ready, and the images known
            rates: dict[tuple[str, int], list[tuple[float, list[float]]]] = {}
            for _ in range(given.rounds):
                one_round(server, given.count, tokens, rates)
            for images in ("new", "known"):
                speeds = {n: [rate for rate, _ in rates[images, n]] for n in CLIENTS}
                told = ", ".join(f"{n}: {ratio(speeds[n], speeds[1], 1)}" for n in CLIENTS[1:])
                firsts = sorted(chain.from_iterable(found for _, found in rates[images, 16]))
                p95 = firsts[int(0.95 * len(firsts))] * 1e3
                print(
                    f"{images} images: {spread(speeds[1], 1)} answers/s of one client, times that "
                    f"by more: {told}; p95 of the first token of 16: {p95:.0f} ms"
                )


if __name__ == "__main__":
    main()
