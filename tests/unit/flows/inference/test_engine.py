"""Nobody waits for ever, not after a defect and not when the server stops; jobs run alone."""

import gc
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from threading import Event

import pytest

from flows.inference.answer import Answer, Piece
from flows.inference.engine import Engine, FullError, StoppedError, Waiting
from flows.inference.limits import EngineLimits
from model.assistant import Assistant
from model.batching import Batcher, TextRequest
from model.generation_configs import GreedyConfig
from tests.support.tiny_bundle import image


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


def texts(pieces: SimpleQueue[Piece]) -> list[str]:
    found = [pieces.get(timeout=30)]
    while not found[-1].reason:
        found.append(pieces.get(timeout=30))
    return [piece.text for piece in found]


def until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


@contextmanager
def held(engine: Engine) -> Iterator[Event]:
    """Keep the engine's thread busy with a job until the event is set."""
    begun, go_on = Event(), Event()

    def job() -> None:
        begun.set()
        go_on.wait(30)

    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(engine.run, job)
        begun.wait(30)
        yield go_on
        go_on.set()
        done.result(30)


def test_after_a_defect_the_next_answer_is_written(
    assistant: Assistant, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(assistant)
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
    engine = Engine(assistant, EngineLimits(at_once=1, waiting=2))
    waiting = [asked(engine, assistant) for _ in range(3)]
    with ThreadPoolExecutor(1) as pool:
        with engine.running(), held(engine) as go_on:
            for request, _ in waiting[:2]:
                engine.submit(request)
            job = pool.submit(engine.run, lambda: pytest.fail("no job begins after the end"))
            until(lambda: engine.waiting == 3)
            with pytest.raises(FullError):
                engine.submit(waiting[2][0])
            with pytest.raises(FullError):
                engine.run(lambda: None)
            engine._closed = True
            go_on.set()
        assert [last(pieces).error for _, pieces in waiting[:2]] == ["the server is stopping"] * 2
        with pytest.raises(StoppedError):
            job.result(30)


def test_a_request_after_the_end_is_told(assistant: Assistant) -> None:
    engine = Engine(assistant)
    with engine.running():
        pass
    request, pieces = asked(engine, assistant)
    engine.submit(request)
    assert last(pieces).error == "the server is stopping"
    with pytest.raises(StoppedError):
        engine.run(lambda: None)


def test_those_who_asked_together_are_read_together_again(
    assistant: Assistant, monkeypatch: pytest.MonkeyPatch
) -> None:
    joined: list[int] = []
    join = Batcher.join

    def noted(batcher: Batcher, requests: Sequence[TextRequest]) -> None:
        joined.append(len(requests))
        join(batcher, requests)

    monkeypatch.setattr(Batcher, "join", noted)
    monkeypatch.setattr("flows.inference.engine._PAUSE_SECONDS", 2.0)
    monkeypatch.setattr("flows.inference.engine._GATHER_SECONDS", 20.0)
    engine = Engine(assistant, EngineLimits(at_once=4))
    for _ in range(2):  # the second time one comes after the other
        requests = [asked(engine, assistant) for _ in range(2)]
        with held(engine) if not joined else nullcontext():
            for request, _ in requests:
                engine.submit(request)
                time.sleep(0.1)
        for _, pieces in requests:
            last(pieces)
    assert joined == [2, 2]
    request, pieces = asked(engine, assistant)  # one alone: waits once, then no more
    engine.submit(request)
    last(pieces)
    monkeypatch.setattr("flows.inference.engine._PAUSE_SECONDS", 300.0)
    request, pieces = asked(engine, assistant)
    engine.submit(request)
    last(pieces)
    assert joined == [2, 2, 1, 1]


def test_an_image_that_was_read_is_not_read_again(assistant: Assistant) -> None:
    engine, read = Engine(assistant), []
    body = assistant.vlm.language_model.get_submodule("model")
    count = body.register_forward_pre_hook(
        lambda _, __, given: read.append(given["inputs_embeds"].shape[1]), with_kwargs=True
    )
    try:
        answers = []
        for _ in range(2):
            request, pieces = asked(engine, assistant)
            engine.submit(request)
            answers.append(texts(pieces))
    finally:
        count.remove()
    prompt = len(assistant.prompt("What?"))
    assert answers[0] == answers[1]
    assert [size for size in read if size > 1] == [assistant.prefix + prompt, 1 + prompt]


def test_a_job_runs_between_two_tokens_and_gives_its_result_or_its_error(
    assistant: Assistant,
) -> None:
    engine = Engine(assistant)
    request, pieces = asked(engine, assistant)
    with held(engine):
        engine.submit(request)
    assert pieces.get(timeout=30).tokens == 1
    assert engine.run(lambda: "done") == "done"
    with pytest.raises(ZeroDivisionError):
        engine.run(lambda: 1 / 0)
    assert last(pieces).tokens == 9


def test_a_reader_who_left_while_waiting_is_not_read(assistant: Assistant) -> None:
    engine = Engine(assistant)
    gone, nothing = asked(engine, assistant)
    stays, pieces = asked(engine, assistant)
    with held(engine):
        engine.submit(gone)
        engine.submit(stays)
        gone.answer.leave()
    assert last(pieces).tokens == 9
    assert nothing.empty()


def test_a_dropped_engine_writes_what_was_asked_and_its_model_leaves_the_memory(
    tiny_bundle: Path,
) -> None:
    engine = Engine(Assistant(tiny_bundle))
    request, pieces = asked(engine, engine.assistant)
    with held(engine):
        engine.submit(request)
    model = weakref.ref(engine.assistant.vlm)
    del engine, request
    assert last(pieces).tokens == 9

    def is_gone() -> bool:
        gc.collect()
        return model() is None

    until(is_gone)
