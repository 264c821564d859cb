"""The server as OpenAI's own client sees it: one process, real requests over a real socket."""

import base64
import http.client
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Generator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from model.assistant import Assistant
from tests.support.forks import run_command
from tests.support.serving import ROOT, running_fork
from tests.support.tiny_bundle import image

COLOURS = ("red", "blue", "green", "yellow")
pytestmark = pytest.mark.timeout(300)


@contextmanager
def served(bundle: Path, *options: str, key: str = "") -> Iterator[str]:
    """Serve a bundle in a process of its own and return its address."""
    with running_fork(bundle, *options, key=key) as server:
        yield server.address


@pytest.fixture(scope="module")
def address(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Generator[str]:
    import shutil

    bundle = tmp_path_factory.mktemp("served") / "bundle"
    shutil.copytree(tiny_bundle, bundle)
    card = json.loads((bundle / "bundle.json").read_text())
    (bundle / "bundle.json").write_text(json.dumps({**card, "max_images": 2}))
    with served(bundle) as place:
        yield place


@pytest.fixture
def client(address: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=address, api_key="none", max_retries=0, timeout=60)


def url(colour: str) -> dict[str, Any]:
    data = base64.b64encode(image(colour)).decode()
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}


def asking(question: str, *colours: str) -> list[Any]:
    content = [*map(url, colours), {"type": "text", "text": question}]
    return [{"role": "user", "content": content}]


def name_of(client: openai.OpenAI) -> str:
    return client.models.list().data[0].id


def test_an_answer_is_the_assistants_own(client: openai.OpenAI, assistant: Assistant) -> None:
    name = name_of(client)
    answers = []
    for colour in COLOURS:
        made = client.chat.completions.create(model=name, messages=asking("What is it?", colour))
        assert made.choices[0].message.content == assistant.ask(image(colour), "What is it?")
        answers.append(made)
    turns = asking("What is it?", "red")
    turns += [{"role": "assistant", "content": "A disc."}, {"role": "user", "content": "Sure?"}]
    made = client.chat.completions.create(model=name, messages=turns)
    expected = assistant.ask(image("red"), "Sure?", [("What is it?", "A disc.")])
    assert made.choices[0].message.content == expected
    usage = made.usage
    assert usage is not None
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    longer = answers[0].usage
    assert longer is not None
    assert usage.prompt_tokens > longer.prompt_tokens


def test_two_images_are_seen_in_their_order(client: openai.OpenAI, tiny_bundle: Path) -> None:
    assistant = Assistant(tiny_bundle)
    assistant.card["max_images"] = 2
    name, said = name_of(client), []
    for colours in (("red", "blue"), ("blue", "red")):
        made = client.chat.completions.create(model=name, messages=asking("Which?", *colours))
        said.append(made.choices[0].message.content)
        question = "<image>\n<image>\nWhich?"
        assert said[-1] == assistant.ask([*map(image, colours)], question)
    assert said[0] != said[1]


def test_a_stream_adds_up_to_the_answer(client: openai.OpenAI, assistant: Assistant) -> None:
    stream = client.chat.completions.create(
        model=name_of(client),
        messages=asking("What is it?", "red"),
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    texts = [each.choices[0].delta.content or "" for each in chunks if each.choices]
    assert "".join(texts) == assistant.ask(image("red"), "What is it?")
    assert len([text for text in texts if text]) > 3
    reasons = [each.choices[0].finish_reason for each in chunks if each.choices]
    assert reasons[-1] == "length"  # the tiny model never ends a text by itself
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == assistant.card["max_new_tokens"]


def test_an_image_can_be_uploaded(client: openai.OpenAI, assistant: Assistant) -> None:
    file = client.files.create(file=("disc.png", image("red")), purpose="vision")
    assert (file.bytes, file.filename) == (len(image("red")), "disc.png")
    assert file.id in [each.id for each in client.files.list()]
    assert client.files.retrieve(file.id).purpose == "vision"
    part: Any = {"type": "file", "file": {"file_id": file.id}}
    for _ in range(2):  # an upload serves several questions
        made = client.chat.completions.create(
            model=name_of(client),
            messages=[{"role": "user", "content": [part, {"type": "text", "text": "What is it?"}]}],
        )
        assert made.choices[0].message.content == assistant.ask(image("red"), "What is it?")
    assert client.files.delete(file.id).deleted
    with pytest.raises(openai.NotFoundError, match="upload it again"):
        client.chat.completions.create(
            model=name_of(client),
            messages=[{"role": "user", "content": [part, {"type": "text", "text": "What is it?"}]}],
        )


def test_an_upload_that_is_no_image_is_refused(client: openai.OpenAI) -> None:
    before = client.files.list().data
    with pytest.raises(openai.BadRequestError, match="not an image"):
        client.files.create(file=("a.png", b"text"), purpose="vision")
    with pytest.raises(openai.BadRequestError, match="purpose must be"):
        client.files.create(file=("a.png", image("red")), purpose="batch")
    answer = httpx.post(f"{client.base_url}files", data={"purpose": "vision"})
    assert (answer.status_code, "file" in answer.json()["error"]["message"]) == (400, True)
    assert client.files.list().data == before


def test_an_answer_in_two_packets_does_not_wait(address: str) -> None:
    place = httpx.URL(address)
    body = json.dumps({"messages": asking("What is it?", "red"), "max_tokens": 1})

    def seconds(connection: http.client.HTTPConnection) -> float:
        begun = time.monotonic()
        headers = {"Content-Type": "application/json"}
        connection.request("POST", "/v1/chat/completions", body, headers)
        connection.getresponse().read()
        return time.monotonic() - begun

    def connect() -> http.client.HTTPConnection:
        return http.client.HTTPConnection(place.host, place.port or 80)

    with closing(connect()) as connection:
        kept = [seconds(connection) for _ in range(40)][20:]
    new = []
    for _ in range(20):
        with closing(connect()) as connection:
            new.append(seconds(connection))
    # Where Nagle's algorithm meets delayed acknowledgements, an answer takes 40 ms more, but for
    # the first of a connection, whose packets Linux acknowledges at once.
    assert min(kept) < min(new) + 0.03


def test_length_stop_and_temperature_are_heard(client: openai.OpenAI, assistant: Assistant) -> None:
    name, messages = name_of(client), asking("What is it?", "red")
    whole = assistant.ask(image("red"), "What is it?")
    made = client.chat.completions.create(model=name, messages=messages, max_tokens=2)
    assert whole.startswith(made.choices[0].message.content or "?")
    assert (made.choices[0].finish_reason, made.usage and made.usage.completion_tokens) == (
        "length",
        2,
    )
    stop = whole[5:8]
    made = client.chat.completions.create(model=name, messages=messages, stop=[stop])
    assert made.choices[0].message.content == whole[: whole.find(stop)]
    assert made.choices[0].finish_reason == "stop"
    drawn = [
        client.chat.completions.create(model=name, messages=messages, temperature=2, seed=seed)
        .choices[0]
        .message.content
        for seed in (1, 1, 2)
    ]
    assert drawn[0] == drawn[1]
    assert drawn[0] != drawn[2]


def test_32_clients_at_once_get_what_one_gets(client: openai.OpenAI, assistant: Assistant) -> None:
    name = name_of(client)
    questions = [(f"What is number {n}?", COLOURS[n % 4]) for n in range(32)]
    begin = threading.Barrier(len(questions))

    def ask(asked: tuple[str, str]) -> str | None:
        question, colour = asked
        begin.wait()
        made = client.chat.completions.create(model=name, messages=asking(question, colour))
        return made.choices[0].message.content

    with ThreadPoolExecutor(len(questions)) as pool:
        said = list(pool.map(ask, questions))
    assert said == [assistant.ask(image(colour), question) for question, colour in questions]


def figure(address: str, name: str) -> float:
    text = httpx.get(address.replace("/v1", "/metrics")).text
    return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(f"{name} "))


def test_a_client_that_leaves_frees_its_place(address: str, client: openai.OpenAI) -> None:
    name, written = name_of(client), figure(address, "phivision_tokens_total")
    for at_once in (True, False):
        place = httpx.URL(address)
        connection = http.client.HTTPConnection(place.host, place.port or 80)
        body = {"model": name, "messages": asking("What?", "red"), "stream": at_once}
        connection.request(
            "POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"}
        )
        if at_once:
            connection.getresponse().read(1)
        connection.close()
    end = time.monotonic() + 30
    while figure(address, "phivision_active") and time.monotonic() < end:
        time.sleep(0.05)
    assert figure(address, "phivision_active") == 0
    assert figure(address, "phivision_waiting") == 0
    made = client.chat.completions.create(model=name, messages=asking("What?", "red"))
    assert made.usage is not None
    assert figure(address, "phivision_tokens_total") >= written + made.usage.completion_tokens


FILE = {"type": "file", "file": {"file_id": "file-0"}}
REFUSED: Mapping[str, tuple[int, Any, str]] = {
    "no JSON": (400, b"{", "JSON"),
    "no messages": (400, {}, "messages"),
    "a list": (400, [1], "dictionary"),
    "another model": (404, {"model": "gpt-4o", "messages": asking("a", "red")}, "no model"),
    "no image": (400, {"messages": asking("What?")}, "never trained on texts alone"),
    "three images": (400, {"messages": asking("a", "red", "red", "red")}, "learned to see 2"),
    "no question": (400, {"messages": asking(" ", "red")}, "the question is empty"),
    "a long question": (400, {"messages": asking("why " * 900, "red")}, "too long"),
    "a long answer": (
        400,
        {"messages": asking("a", "red"), "max_tokens": 9999},
        "tokens at most",
    ),
    "an image elsewhere": (
        400,
        {
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "image_url", "image_url": {"url": "http://127.0.0.1:1/a.png"}},
                        {"type": "text", "text": "What?"},
                    ],
                }
            ]
        },
        "data: URIs only",
    ),
    "a file that was not uploaded": (
        404,
        {"messages": [{"role": "user", "content": [FILE, {"type": "text", "text": "a"}]}]},
        "no such file",
    ),
    "no image file": (
        400,
        {
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "image_url", "image_url": "data:image/png;base64,AAAA"},
                        {"type": "text", "text": "What?"},
                    ],
                }
            ]
        },
        "image",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_answered_is_told(address: str, case: str) -> None:
    status, body, words = REFUSED[case]
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"}
    for streamed in (False, True):
        if isinstance(body, dict):
            content = json.dumps({**body, "stream": streamed}).encode()
        answer = httpx.post(f"{address}/chat/completions", content=content, headers=headers)
        assert answer.status_code == status
        assert words in answer.json()["error"]["message"]


def test_a_large_body_is_refused_while_it_comes(address: str) -> None:
    def body() -> Iterator[bytes]:
        yield b'{"messages": "'
        for _ in range(40):
            yield b"x" * 2**20

    try:
        answer = httpx.post(f"{address}/chat/completions", content=body(), timeout=60)
    except httpx.WriteError:
        return  # the connection was closed while the rest was still being sent
    assert answer.status_code == 413


def test_a_page_of_another_site_is_refused(address: str) -> None:
    answer = httpx.get(f"{address}/models", headers={"Host": "evil.example"})
    assert answer.status_code == 400


def test_a_key_is_asked_for(tiny_bundle: Path) -> None:
    with served(tiny_bundle, key="s3cret") as address:
        assert httpx.get(address.replace("/v1", "/health")).json() == {"status": "ok"}
        for key in ("none", "s3cre", "s3crett"):
            with pytest.raises((openai.AuthenticationError, openai.APIConnectionError)):
                openai.OpenAI(base_url=address, api_key=key, max_retries=0).models.list()
        assert httpx.get(address.replace("/v1", "/metrics")).status_code == 401
        assert openai.OpenAI(base_url=address, api_key="s3cret").models.list().data


def test_other_machines_need_a_key(tiny_bundle: Path) -> None:
    without = {**os.environ, "PHIVISION_API_KEY": ""}
    done = run_command(("serve", "--host", "0.0.0.0"), without, 100)
    assert done.returncode == 1
    assert "PHIVISION_API_KEY" in done.stderr


def test_the_page_shows_a_program_that_works(
    address: str, assistant: Assistant, tmp_path: Path
) -> None:
    page = (ROOT / "docs/serving.md").read_text()
    code = "\n".join(re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL))
    (tmp_path / "photo.jpg").write_bytes(image("red"))
    done = subprocess.run(
        [sys.executable, "-c", code.replace("http://127.0.0.1:8000/v1", address)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    expected = assistant.ask(image("red"), "What is red?")
    assert done.stdout.split("\n") == [expected, expected, ""], done.stderr
