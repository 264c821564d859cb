"""Nobody waits for ever: not after a defect, and not when the server stops."""

from queue import SimpleQueue

import pytest

from flows.serve.answer import Answer, Piece
from flows.serve.engine import Engine, FullError
from model.assistant import Assistant
from model.batching import Batcher, TextRequest
from model.generation_configs import GreedyConfig
from tests.support.tiny_bundle import image


def asked(assistant: Assistant) -> tuple[TextRequest, Answer, SimpleQueue[Piece]]:
    pieces: SimpleQueue[Piece] = SimpleQueue()
    answer = Answer(assistant.template.decode, 9, [], pieces.put)
    prompt, patches = assistant.prompt("What?"), assistant.shown([image()])
    return TextRequest(patches, prompt, 9, GreedyConfig(), answer.take), answer, pieces


def last(pieces: SimpleQueue[Piece]) -> Piece:
    while not (piece := pieces.get(timeout=30)).reason:
        pass
    return piece


def test_after_a_defect_the_next_answer_is_written(
    assistant: Assistant, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(assistant, 2, 2)
    with engine.running():
        with monkeypatch.context() as broken:
            broken.setattr(Batcher, "step", lambda _: 1 / 0)
            request, answer, pieces = asked(assistant)
            engine.submit(request, answer)
            assert last(pieces).error == "the answer cannot be written: ZeroDivisionError"
        request, answer, pieces = asked(assistant)
        engine.submit(request, answer)
        assert last(pieces).error == ""


def test_those_that_wait_when_the_server_stops_are_told(assistant: Assistant) -> None:
    engine = Engine(assistant, 1, 1)
    waiting = [asked(assistant) for _ in range(3)]
    for request, answer, _ in waiting[:2]:
        engine.submit(request, answer)
    with pytest.raises(FullError):
        engine.submit(*waiting[2][:2])
    engine._closed = True
    with engine.running():
        pass
    assert [last(pieces).error for *_, pieces in waiting[:2]] == ["the server is stopping"] * 2
