"""A few hundred requests, a fifth of them faults; `tests/benchmarks/serving_soak.py` has more."""

import time
from pathlib import Path

from model.assistant import Assistant
from tests.support.serve_soak import Question, soak
from tests.support.serving import running
from tests.support.tiny_bundle import image

COLOURS = ("red", "blue", "green", "yellow", "black", "white")


def test_no_answer_is_lost_or_wrong_among_faults(tiny_bundle: Path, assistant: Assistant) -> None:
    questions = [
        Question(image(colour), text, assistant.ask(image(colour), text))
        for colour in COLOURS
        for text in ("What is it?", "How many are there?", "Where?")
    ]
    with running(tiny_bundle) as server:
        kinds = soak(server.place, questions, 200, seed=1)
        before = server.memory
        kinds += soak(server.place, questions, 200, seed=2)
        good = sum(kinds[kind] for kind in ("whole", "streamed", "slow reader", "slow writer"))
        end = time.monotonic() + 30
        while server.figures()["phivision_active"] and time.monotonic() < end:
            time.sleep(0.05)
        figures = server.figures()
        grown = server.memory - before
    assert figures["phivision_active"] == figures["phivision_waiting"] == 0
    assert figures['phivision_requests_total{status="200"}'] >= good
    # Those that left in the middle may have been answered or not.
    left = kinds["dropped answer"] + kinds["dropped stream"]
    assert good <= figures["phivision_first_token_seconds_count"] <= good + left
    assert grown < 60 * 2**20
