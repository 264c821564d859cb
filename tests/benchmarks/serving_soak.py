"""10,000 requests to `phivision serve`, a fifth of them faults: is memory flat, is none lost?

`python tests/benchmarks/serving_soak.py BUNDLE` serves a bundle, for example the one that the demo
has published (`phivision export DIR`), and sends requests by 16 clients in rounds. It ends with an
error if a good request gets no answer or another one than alone. It prints the server's memory
after each round; half of the images of a round were never sent before, so that what is kept by
digest is being filled.
"""

import argparse
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

# A file run by its path finds only its own folder; the packages lie two folders up.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))


from model.assistant import Assistant
from tests.benchmarks.helpers.serving_images import scene
from tests.support.serve_soak import Question, soak
from tests.support.serving import running
from tests.support.tiny_bundle import write_bundle

QUESTIONS = ("What colour is object 1?", "How many objects are there?", "Describe the image.")
IMAGES = 32


def questions(assistant: Assistant, first: int) -> list[Question]:
    """Return questions about images from a number on, with the answers written alone."""
    images = [scene(number) for number in range(first, first + IMAGES)]
    return [
        Question(image, text, assistant.ask(image, text)) for image in images for text in QUESTIONS
    ]


def main() -> None:
    """Serve, send, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundle", type=Path, nargs="?")
    parser.add_argument("--count", type=int, default=1000, help="requests of a round")
    parser.add_argument("--rounds", type=int, default=10)
    given = parser.parse_args()
    kinds: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        bundle = given.bundle or write_bundle(Path(folder) / "bundle")
        assistant = Assistant(bundle)
        asked = questions(assistant, 0)
        with running(bundle) as server:
            print(f"before: {server.memory / 2**20:.0f} MB", flush=True)
            for number in range(given.rounds):
                known = asked[: len(asked) // 2]
                asked = known + questions(assistant, (number + 1) * IMAGES)[: len(asked) // 2]
                begun = time.monotonic()
                kinds += soak(server.place, asked, given.count, number)
                seconds = time.monotonic() - begun
                memory = server.memory / 2**20
                print(f"round {number + 1}: {memory:.0f} MB, {seconds:.1f} s", flush=True)
            time.sleep(2)  # the last ones that left
            figures = server.figures()
            print(dict(kinds))
            for name in ("phivision_active", "phivision_waiting", "phivision_tokens_total"):
                print(name, int(figures[name]))


if __name__ == "__main__":
    main()
