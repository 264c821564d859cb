"""Before the first request: as many threads as given, else what is quicker; fast collections."""

import gc
from collections.abc import Iterator

import pytest
import torch

from flows.inference.freezing import freeze
from flows.inference.warming import warm
from model.assistant import Assistant


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    gc.unfreeze()


def test_given_threads_are_taken(assistant: Assistant) -> None:
    for number in (2, 1):
        warm(assistant, number)
        assert torch.get_num_threads() == number


def test_one_thread_or_all_are_chosen(assistant: Assistant) -> None:
    torch.set_num_threads(3)
    warm(assistant, None)
    assert torch.get_num_threads() in (1, 3)


def test_what_there_is_is_left_out_of_collections() -> None:
    freeze()
    assert gc.get_freeze_count() > 10_000
