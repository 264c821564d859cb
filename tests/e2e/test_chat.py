"""The chat as people and strangers meet it: a real server, a real browser, bad files, crowds."""

import io
import os
import random
import re
import socket
import subprocess
import sys
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.chat_client import answer_in, ask, attach, look, paste, upload
from tests.e2e.chat_server import ROOT, serving
from tests.support.tiny_bundle import image, texture

pytest.importorskip("gradio", reason="the chat needs the extra `chat`")
pytestmark = [pytest.mark.e2e, pytest.mark.browser, pytest.mark.timeout(600)]
USER, PASSWORD = "ada", "planted-chat-password"
QUESTION = "What colour is it?"


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("chat") / "asked"


@pytest.fixture(scope="module")
def server(tiny_bundle: Path, log: Path) -> Iterator[str]:
    """The address of `phivision chat` with a user and a password."""
    arguments = ["flows.cli", "chat", "--bundle", str(tiny_bundle), "--port", "0", "--user", USER]
    with serving(log, arguments, os.environ | {"PHIVISION_CHAT_PASSWORD": PASSWORD}) as address:
        yield address


@pytest.fixture(scope="module")
def visitor(server: str) -> Iterator[httpx.Client]:
    """Somebody who has logged in."""
    with httpx.Client(base_url=server, timeout=60) as client:
        done = client.post("/login", data={"username": USER, "password": PASSWORD})
        assert done.status_code == 200
        yield client


def asked(log: Path) -> str:
    """Return the hosts outside this machine that a server has asked so far."""
    return log.read_text() if log.exists() else ""


def logged_in(browser: Any, server: str, width: int, height: int) -> Any:
    """Return a page of somebody who has logged in."""
    context = browser.new_context(viewport={"width": width, "height": height})
    context.request.post(f"{server}/login", form={"username": USER, "password": PASSWORD})
    page = context.new_page()
    page.set_default_timeout(90_000)
    return page


# -- people ------------------------------------------------------------------------------------


def test_a_person_uploads_asks_asks_again_and_meets_a_bad_file(
    server: str, browser: Any, assistant: Any, log: Path
) -> None:
    before = asked(log)
    first = assistant.ask(image(), QUESTION)
    second = assistant.ask(image(), "How many objects?", [(QUESTION, first)])
    page = logged_in(browser, server, width=390, height=844)
    outside: list[str] = []
    page.on("request", lambda request: outside.append(request.url))
    page.goto(server)
    line = page.locator("#line textarea")
    line.wait_for()

    attach(page, "red.png", image())
    line.fill(QUESTION)
    line.press("Enter")
    page.get_by_text(first, exact=True).first.wait_for()
    line.fill("How many objects?")
    line.press("Enter")
    page.get_by_text(second, exact=True).first.wait_for()

    attach(page, "bad.png", b"no image at all")
    line.fill("And this?")
    line.press("Enter")
    page.get_by_text("This is not an image that can be read").wait_for()
    assert line.input_value() == "And this?"  # nothing is lost: the file can be exchanged

    page.click("#about button")
    page.get_by_text("Scores on held-out images").wait_for()
    widths = page.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
    assert widths[0] <= widths[1]  # a phone need not scroll sideways
    page.context.close()
    strangers = [url for url in outside if not url.startswith((server, "data:", "blob:"))]
    assert strangers == []
    assert asked(log) == before  # the server asked nobody either


def test_an_image_is_pasted_and_a_long_question_is_refused_and_kept(
    server: str, browser: Any, assistant: Any
) -> None:
    page = logged_in(browser, server, width=1280, height=800)
    page.goto(server)
    page.locator("#line textarea:enabled").wait_for()
    paste(page, image())
    line = page.locator("#line textarea")
    long = "why " * 300
    line.fill(long)
    line.press("Enter")
    page.get_by_text("at most 1,000 are allowed").wait_for()
    assert line.input_value() == long
    line.fill(QUESTION)
    line.press("Enter")
    page.get_by_text(assistant.ask(image(), QUESTION), exact=True).wait_for()
    page.context.close()


def test_an_example_is_one_click(server: str, browser: Any, assistant: Any) -> None:
    page = logged_in(browser, server, width=1280, height=800)
    page.goto(server)
    page.get_by_text("Is the disc blue?").first.click()
    page.get_by_text(assistant.ask(image("blue"), "Is the disc blue?"), exact=True).wait_for()
    page.context.close()


def test_a_person_sees_where_it_looked_and_is_warned_of_an_unusual_image(
    wary_bundle: Path, browser: Any, assistant: Any, tmp_path: Path
) -> None:
    arguments = ["flows.cli", "chat", "--bundle", str(wary_bundle), "--port", "0"]
    with serving(tmp_path / "asked", arguments, os.environ) as address:
        page = browser.new_page(viewport={"width": 390, "height": 844})
        page.set_default_timeout(90_000)
        page.goto(address)
        line, warning = page.locator("#line textarea"), page.locator("#unlike")
        line.wait_for()
        attach(page, "red.png", image())
        line.fill(QUESTION)
        line.press("Enter")
        page.get_by_text(assistant.ask(image(), QUESTION), exact=True).first.wait_for()
        assert "unlike" not in warning.inner_text()

        page.click("#where")
        drawn = page.locator("#looked img")
        drawn.wait_for()
        page.wait_for_function("document.querySelector('#looked img').naturalWidth > 100")
        widths = page.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
        assert widths[0] <= widths[1]

        attach(page, "texture.png", texture())
        line.fill("And this one?")
        line.press("Enter")
        page.get_by_text("This image is unlike those the model was trained on (discs)").wait_for()
        drawn.wait_for(state="hidden")  # it belongs to the answer before
        page.close()


def test_a_button_shows_where_it_looked(visitor: httpx.Client, assistant: Any) -> None:
    path = upload(visitor, image()).json()[0]
    file = {"path": path, "meta": {"_type": "gradio.FileData"}}
    asked = [{"type": "file", "file": file}, {"type": "text", "text": QUESTION}]
    answer = [{"type": "text", "text": assistant.ask(image(), QUESTION)}]
    history = [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
    said = look(visitor, history)
    assert "event: complete" in said
    (shown,) = re.findall(r'"path": "([^"]+)"', said)
    drawn = visitor.get(f"/gradio_api/file={shown}")
    assert drawn.headers["content-type"] == "image/jpeg"
    assert "Ask something about an image first." in look(visitor, [])
    file["path"] = "/etc/passwd"
    assert "event: complete" not in look(visitor, history)


# -- programs ----------------------------------------------------------------------------------


def test_the_api_gives_a_warning_beside_the_answer(wary_bundle: Path, tmp_path: Path) -> None:
    arguments = ["flows.cli", "chat", "--bundle", str(wary_bundle), "--port", "0"]
    with (
        serving(tmp_path / "asked", arguments, os.environ) as address,
        httpx.Client(base_url=address, timeout=60) as client,
    ):
        given = [
            answer_in(ask(client, QUESTION, upload(client, data).json()[0]))
            for data in (image(), texture())
        ]
    assert all(answer["text"] for answer in given)
    assert given[0]["warning"] == ""
    assert given[1]["warning"].startswith(
        "This image is unlike those the model was trained on (discs)"
    )


# -- many at once ------------------------------------------------------------------------------


def test_twenty_simultaneous_questions_are_all_answered(
    visitor: httpx.Client, assistant: Any
) -> None:
    path = upload(visitor, image()).json()[0]
    questions = [f"What colour is object {number}?" for number in range(20)]
    with ThreadPoolExecutor(20) as crowd:
        said = list(crowd.map(lambda question: ask(visitor, question, path), questions))
    answers = [assistant.ask(image(), question) for question in questions]
    assert len(set(answers)) > 10  # so that a mixed-up answer is seen
    for text, answer in zip(said, answers, strict=True):
        assert answer_in(text)["text"] == answer


# -- strangers ---------------------------------------------------------------------------------


def malformed() -> list[tuple[str, bytes]]:
    """Return fifty files that are no usable image."""
    rng = random.Random(5)
    whole = image()
    header = whole[:16] + (60_000).to_bytes(4, "big") * 2 + whole[24:29]
    bomb = header + zlib.crc32(header[12:]).to_bytes(4, "big") + whole[33:]
    files = [
        ("empty.png", b""),
        ("text.png", b"hello"),
        ("page.png", b"<html><script>alert(1)</script>"),
        ("drawing.svg", b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>"),
        ("bomb.png", bomb),
        ("animated.gif", animated()),
        ("pickle.png", b"\x80\x04cos\nsystem\n(S'true'\ntR."),
        ("archive.png", b"PK\x03\x04" + bytes(100)),
        ("../../../tmp/escape.png", b"escape"),
        ("a" * 300 + ".png", b"long name"),
    ]
    files += [(f"cut{n}.png", whole[: 20 + 5 * n]) for n in range(20)]
    files += [(f"noise{n}.jpg", b"\xff\xd8\xff\xe0" + rng.randbytes(400)) for n in range(20)]
    return files


def animated() -> bytes:
    from PIL import Image

    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    stream = io.BytesIO()
    frames[0].save(stream, "GIF", save_all=True, append_images=frames[1:])
    return stream.getvalue()


def test_fifty_malformed_uploads_are_refused_and_the_server_lives(
    visitor: httpx.Client, assistant: Any
) -> None:
    files = malformed()
    assert len(files) == 50
    for name, data in files:
        sent = upload(visitor, data, name)
        assert sent.status_code in (200, 400, 413, 422), name
        if sent.status_code == 200:
            said = ask(visitor, QUESTION, sent.json()[0])
            assert "event: error" in said, name
    assert not Path("/tmp/escape.png").exists()
    path = upload(visitor, image()).json()[0]
    assert "event: complete" in ask(visitor, QUESTION, path)


def test_a_file_that_is_too_large_is_turned_away(visitor: httpx.Client) -> None:
    assert upload(visitor, bytes(21 * 2**20)).status_code == 413


def test_only_temporary_files_can_be_read(visitor: httpx.Client, tiny_bundle: Path) -> None:
    readme = ROOT / "pyproject.toml"
    outside = [Path("/etc/passwd"), readme, tiny_bundle / "bundle.json", Path("/proc/self/environ")]
    uploaded = upload(visitor, image()).json()[0]
    assert visitor.get(f"/gradio_api/file={uploaded}").content == image()
    for path in outside:
        for address in (
            f"/gradio_api/file={path}",
            f"/file={path}",
            f"/gradio_api/file=/tmp/..{path}",
        ):
            assert visitor.get(address).status_code in (403, 404), address
        said = ask(visitor, QUESTION, str(path))
        assert "event: complete" not in said, path
        assert "root:" not in said


def test_the_server_fetches_nothing_for_a_stranger(visitor: httpx.Client) -> None:
    for address in (
        "/gradio_api/file=http://127.0.0.1:9/x",
        "/gradio_api/proxy=http://127.0.0.1:9/x",
    ):
        assert visitor.get(address).status_code == 404, address
    assert "event: complete" not in ask(visitor, QUESTION, "http://127.0.0.1:9/x.png")


def test_browsers_are_told_to_ask_nobody_else(visitor: httpx.Client) -> None:
    page = visitor.get("/")
    assert "default-src 'self'" in page.headers["content-security-policy"]
    assert visitor.get("/config").json()["analytics_enabled"] is False


def test_without_the_password_there_is_only_a_login(server: str) -> None:
    with httpx.Client(base_url=server, timeout=60) as stranger:
        assert (
            stranger.post("/login", data={"username": USER, "password": "guess"}).status_code == 400
        )
        assert stranger.get("/config").status_code == 401
        assert upload(stranger, image()).status_code == 401
        assert ask(stranger, QUESTION, None) == "error 401"


def test_only_this_machine_can_connect(server: str) -> None:
    port = int(server.rpartition(":")[2])
    others = {info[4][0] for info in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)}
    for host in sorted(others - {"127.0.0.1"}):
        with socket.socket() as probe:
            probe.settimeout(2)
            assert probe.connect_ex((str(host), port)) != 0, host


def test_the_password_is_never_written(server: str, log: Path) -> None:
    assert PASSWORD not in log.with_suffix(".err").read_text()


# -- the Space ---------------------------------------------------------------------------------


def test_a_space_is_whole_and_is_the_same_page(
    tiny_bundle: Path, tmp_path: Path, assistant: Any
) -> None:
    space, log = tmp_path / "space", tmp_path / "asked"
    command = [sys.executable, "-m", "deployments.space.assemble", str(space), str(tiny_bundle)]
    subprocess.run(command, cwd=ROOT, check=True)
    assert not (space / "flows" / "cli.py").exists()
    alone = {**os.environ, "PYTHONPATH": "", "GRADIO_SERVER_PORT": "0"}
    with (
        serving(log, ["app.py"], alone, folder=space) as address,
        httpx.Client(base_url=address, timeout=60) as client,
    ):
        path = upload(client, image()).json()[0]
        said = ask(client, QUESTION, path)
        page = client.get("/config").json()
    assert assistant.ask(image(), QUESTION) in said
    assert page["title"] == "tiny-assistant"
    assert not log.exists(), log.read_text()
