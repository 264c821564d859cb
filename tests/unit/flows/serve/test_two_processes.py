"""HTTP and the model in two processes: what each does when the other forgets, ends or is killed."""

import asyncio
import base64
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from flows.inference.answer import Answer, Piece
from flows.inference.engine import Engine
from flows.inference.limits import EngineLimits
from flows.serve.limits import ServeLimits
from flows.serve.link import Opening, Outbox
from flows.serve.model_process import ModelSide
from flows.serve.remote_engine import FullError, GoneError, Order, RemoteEngine
from flows.serve.served import Served
from model.assistant import Assistant
from model.generation_configs import GreedyConfig
from tests.support.serving import ROOT, running_fork
from tests.support.tiny_bundle import image

pytestmark = pytest.mark.timeout(300)


def opening(assistant: Assistant) -> Opening:
    return Opening(
        folder=assistant.folder,
        prefix=assistant.prefix,
        max_positions=assistant.max_positions,
        shrink=assistant.encoders.shrink,
        key="",
        hosts=(),
        limits=ServeLimits(),
        local=True,
    )


def until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


def end(connection: Connection) -> None:
    """Close a connection that other threads read, as the end of their process does."""
    with socket.socket(fileno=os.dup(connection.fileno())) as shared:
        shared.shutdown(socket.SHUT_RDWR)


async def written(engine: RemoteEngine, served: Served, question: str, stops: list[str]) -> str:
    pieces: asyncio.Queue[Piece] = asyncio.Queue()
    answer = Answer(served.template.decode, 9, stops, pieces.put_nowait)
    images = [engine.prepare(image("red"))]
    engine.submit(Order(images, served.prompt(question), 9, GreedyConfig(), answer))
    text = ""
    while not (piece := await asyncio.wait_for(pieces.get(), 60)).reason:
        text += piece.text
    return piece.error or text + piece.text


@pytest.mark.parametrize("kept_bytes", [0, 2**20])
def test_forgotten_images_are_sent_again(assistant: Assistant, kept_bytes: int) -> None:
    ours, theirs = multiprocessing.Pipe()
    outbox = Outbox(ours)
    model = Engine(assistant, EngineLimits(kept_bytes=kept_bytes), outbox.flush)
    thread = threading.Thread(target=ModelSide(model, ours, outbox).serve)
    thread.start()
    served = Served(opening(assistant))

    async def ask() -> list[str]:
        engine = RemoteEngine(theirs, served, EngineLimits(), lambda: None)
        with engine.running():
            texts = [await written(engine, served, "What is it?", []) for _ in range(3)]
            texts.append(await written(engine, served, "What is it?", [texts[0][4:6]]))
            assert engine.active == engine.waiting == 0
        return texts

    try:
        with model.running():
            *same, cut = asyncio.run(ask())
    finally:
        end(theirs)
        thread.join()
    assert set(same) == {same[0]}
    assert assistant.ask([image("red")], "What is it?").startswith(same[0])
    assert cut == same[0][: same[0].find(same[0][4:6])]


def test_no_more_wait_than_allowed(assistant: Assistant) -> None:
    ours, theirs = multiprocessing.Pipe()
    served = Served(opening(assistant))
    engine = RemoteEngine(theirs, served, EngineLimits(at_once=1, waiting=1), lambda: None)
    answer = Answer(served.template.decode, 9, [], lambda piece: None)
    order = Order([engine.prepare(image("red"))], [1], 9, GreedyConfig(), answer)
    with closing(ours), closing(theirs):
        leave = engine.submit(order)
        engine.submit(order)
        assert (engine.active, engine.waiting) == (1, 1)
        with pytest.raises(FullError):
            engine.submit(order)
        leave()
        assert answer.left
        engine.submit(order)


def test_those_who_wait_are_told_that_the_model_is_gone(assistant: Assistant) -> None:
    ours, theirs = multiprocessing.Pipe()
    served, gone = Served(opening(assistant)), threading.Event()

    async def ask() -> str:
        engine = RemoteEngine(theirs, served, EngineLimits(), gone.set)
        with engine.running():
            asking = asyncio.create_task(written(engine, served, "What is it?", []))
            await asyncio.sleep(0.1)
            end(ours)
            said = await asking
            with pytest.raises(GoneError):  # nor does anybody who asks later wait for ever
                await written(engine, served, "What is it?", [])
            return said

    assert "has ended" in asyncio.run(ask())
    assert gone.is_set()


def http_process(pid: int) -> psutil.Process:
    """Return the process of a server that speaks HTTP."""
    children = psutil.Process(pid).children()
    (found,) = [each for each in children if "resource_tracker" not in " ".join(each.cmdline())]
    return found


def streamed() -> dict[str, Any]:
    data = base64.b64encode(image("red")).decode()
    url = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}
    content = [url, {"type": "text", "text": "What is it?"}]
    return {"messages": [{"role": "user", "content": content}], "stream": True}


def test_a_server_does_not_outlive_either_process(tiny_bundle: Path) -> None:
    with running_fork(tiny_bundle) as server:
        child = http_process(server.pid)
        child.kill()
        until(lambda: not psutil.pid_exists(server.pid))
    with running_fork(tiny_bundle) as server:
        child = http_process(server.pid)
        psutil.Process(server.pid).kill()
        until(lambda: not child.is_running())
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{server.address}/models")


@pytest.mark.parametrize(
    "request_to_end", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGTERM]
)
def test_what_was_asked_is_still_answered(tiny_bundle: Path, request_to_end: int) -> None:
    serve = [sys.executable, "-m", "flows.cli", "serve", "--bundle", str(tiny_bundle), "--port=0"]
    with subprocess.Popen(
        ["sh", "-c", 'trap "" INT; exec "$@"', "serve", *serve],  # as a shell's background does
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    ) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        address = line[line.index("http") :].split()[0]
        with httpx.stream("POST", f"{address}/chat/completions", json=streamed()) as answer:
            lines = answer.iter_lines()
            next(lines)
            process.send_signal(request_to_end)
            rest = list(lines)
        assert "data: [DONE]" in rest
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
