"""Nobody waits for ever: not after a defect, and not when the server stops."""

from functools import partial
from queue import SimpleQueue

import pytest

from flows.serve.answer import Answer, Piece
from flows.serve.engine import Engine, FullError, Waiting
from model.assistant import Assistant
from model.batching import Batcher, TextRequest
from model.generation_configs import GreedyConfig
from tests.support.tiny_bundle import image

KEPT = 2**20


def asked(engine: Engine, assistant: Assistant) -> tuple[Waiting, SimpleQueue[Piece]]:
    pieces: SimpleQueue[Piece] = SimpleQueue()
    answer = Answer(assistant.template.decode, 9, [], pieces.put)
    write = partial(
        TextRequest,
        prompt=assistant.prompt("What?"),
        max_new_tokens=9,
        decoding=GreedyConfig(),
        take=answer.take,
    )
    return Waiting([engine.embeddings.prepare(image())], write, answer), pieces


def last(pieces: SimpleQueue[Piece]) -> Piece:
    while not (piece := pieces.get(timeout=30)).reason:
        pass
    return piece


def test_after_a_defect_the_next_answer_is_written(
    assistant: Assistant, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(assistant, 2, 2, KEPT)
    with engine.running():
        with monkeypatch.context() as broken:
            broken.setattr(Batcher, "step", lambda _: 1 / 0)
            request, pieces = asked(engine, assistant)
            engine.submit(request)
            assert last(pieces).error == "the answer cannot be written: ZeroDivisionError"
        request, pieces = asked(engine, assistant)
        engine.submit(request)
        assert last(pieces).error == ""


def test_those_that_wait_when_the_server_stops_are_told(assistant: Assistant) -> None:
    engine = Engine(assistant, 1, 1, KEPT)
    waiting = [asked(engine, assistant) for _ in range(3)]
    for request, _ in waiting[:2]:
        engine.submit(request)
    with pytest.raises(FullError):
        engine.submit(waiting[2][0])
    engine._closed = True
    with engine.running():
        pass
    assert [last(pieces).error for _, pieces in waiting[:2]] == ["the server is stopping"] * 2


def test_a_request_after_the_end_is_told(assistant: Assistant) -> None:
    engine = Engine(assistant, 1, 1, KEPT)
    with engine.running():
        pass
    request, pieces = asked(engine, assistant)
    engine.submit(request)
    assert last(pieces).error == "the server is stopping"
