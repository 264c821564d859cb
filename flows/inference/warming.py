"""Get ready before the first request: warm up, and take as many threads as pay off."""

import io
import time

import torch
from PIL import Image

from model.assistant import Assistant
from model.generation_configs import GreedyConfig

_LARGE_SECONDS = 0.5  # a model that takes so long for two tokens gains from every core
_TRIES = 5
_WORTH = 0.9  # more threads take cores from HTTP and decoding, so they must save a tenth


def warm(assistant: Assistant, threads: int | None) -> None:
    """Write a few tokens, so that the first client does not wait for torch to get ready.

    On a CPU the operations of a small model are so short that handing them to a second thread takes
    longer than it saves: the demo's answers took 7.3 ms with two threads and 4.6 with one. So both
    are tried, unless a number is given.

    Args:
        assistant: Who answers.
        threads: CPU threads of torch; None to choose.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    all_of_them = torch.get_num_threads()
    slowest = _seconds(assistant)
    if threads is None and assistant.device == "cpu" and slowest < _LARGE_SECONDS:
        seconds = {}
        for number in (all_of_them, 1):
            torch.set_num_threads(number)
            seconds[number] = min(_seconds(assistant) for _ in range(_TRIES))
        torch.set_num_threads(all_of_them if seconds[all_of_them] < _WORTH * seconds[1] else 1)


def _seconds(assistant: Assistant) -> float:
    """Return how long two tokens about an image take."""
    stream = io.BytesIO()
    Image.new("RGB", (64, 64)).save(stream, "PNG")
    begun = time.perf_counter()
    for _ in assistant.stream(stream.getvalue(), None, decoding=GreedyConfig(), max_new_tokens=2):
        pass
    return time.perf_counter() - begun
