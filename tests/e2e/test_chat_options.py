"""What a visitor chooses: settings, models, two side by side, and an answer copied as curl."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.chat_client import answer_in, ask, attach, upload
from tests.e2e.chat_server import ROOT, serving
from tests.support.accessibility import serious_faults
from tests.support.several_assistants import record, vary
from tests.support.tiny_bundle import image, publish_tiny

pytest.importorskip("gradio", reason="the chat needs the extra `chat`")
pytestmark = [pytest.mark.e2e, pytest.mark.browser, pytest.mark.timeout(600)]
USER, PASSWORD = "ada lovelace", "planted chat-password"
QUESTION = "What colour is it?"
RUNS = ("0000000001", "0000000002", "0000000003")


@pytest.fixture(scope="module")
def assistants(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The store with three runs' assistants, and each of them by its run."""
    from model.assistant import Assistant
    from storage.store.artifacts import ArtifactStore

    root = tmp_path_factory.mktemp("options")
    store = ArtifactStore(str(root / "store"), root / "cache")
    publish_tiny(store, root / "made")
    made = [store.manifests("publish")[0]]
    made += [vary(store, made[0], root / "varied", half) for half in (0, 1)]
    for number, (run, manifest) in enumerate(zip(RUNS, made, strict=True), start=1):
        record(store, run, number, manifest)
    opened = {
        run: Assistant(store.artifact(manifest).path("bundle.json").parent)
        for run, manifest in zip(RUNS, made, strict=True)
    }
    return {"store": store.uri, **opened}


@pytest.fixture(scope="module")
def server(assistants: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    log = tmp_path_factory.mktemp("options-chat") / "asked"
    arguments = ["flows.cli", "chat", "--store", assistants["store"], "--port", "0"]
    with serving(log, arguments, os.environ) as address:
        yield address


@pytest.fixture(params=[(1280, 900, "light"), (390, 844, "dark")], ids=["desk", "phone"])
def page(server: str, browser: Any, request: pytest.FixtureRequest) -> Iterator[Any]:
    width, height, scheme = request.param
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    page = context.new_page()
    page.set_default_timeout(90_000)
    page.goto(server)
    page.locator("#line textarea:enabled").wait_for()
    yield page
    context.close()


def choose(page: Any, label: str, run: str) -> None:
    page.get_by_label(label).click()
    page.get_by_role("option", name=run).click()


def send(page: Any, question: str) -> None:
    line = page.locator("#line textarea")
    line.fill(question)
    line.press("Enter")


def set_number(page: Any, label: str, value: str) -> None:
    number = page.get_by_label(f"number input for {label}")
    slider = page.get_by_label(f"range slider for {label}")
    for _ in range(10):  # the settings may stand open before their scripts listen
        number.fill(value)
        number.press("Tab")
        page.wait_for_timeout(300)
        if slider.input_value() == value == number.input_value():
            return
    pytest.fail(f"{label} stays at {slider.input_value()}")


def sh(command: str, folder: Path, **environment: str) -> str:
    done = subprocess.run(
        ["sh", "-c", command],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return done.stdout


def copied(page: Any) -> str:
    page.evaluate("navigator.clipboard.writeText('')")
    page.click("#copy-curl")
    shown = page.locator("#curl textarea")
    shown.wait_for()
    page.wait_for_function(
        "navigator.clipboard.readText().then("
        "text => text && text === document.querySelector('#curl textarea').value)"
    )
    return shown.input_value()  # the same, and never read while it is being written


def test_two_models_answer_side_by_side_and_curl_gives_the_same_answers(
    page: Any, assistants: dict[str, Any], tmp_path: Path
) -> None:
    one, two = assistants[RUNS[1]], assistants[RUNS[2]]
    first, second = one.ask(image(), QUESTION), two.ask(image(), QUESTION)
    assert first != second
    choose(page, "Model", RUNS[1])
    choose(page, "Compare with", RUNS[2])
    page.locator("#beside").wait_for()
    attach(page, "red.png", image())
    send(page, QUESTION)
    page.locator("#talk").get_by_text(first, exact=True).wait_for()
    page.locator("#beside").get_by_text(second, exact=True).wait_for()
    page.locator("#line .submit-button").wait_for()
    send(page, "How many?")
    third = one.ask(image(), "How many?", [(QUESTION, first)])
    fourth = two.ask(image(), "How many?", [(QUESTION, second)])
    page.locator("#talk").get_by_text(third, exact=True).wait_for()
    page.locator("#beside").get_by_text(fourth, exact=True).wait_for()
    page.locator("#line .submit-button").wait_for()

    left, right = (page.locator(name).bounding_box() for name in ("#talk", "#beside"))
    if page.viewport_size["width"] < 640:
        assert right["y"] >= left["y"] + left["height"]
    else:
        assert right["x"] >= left["x"] + left["width"]
        assert right["y"] == left["y"]
    widths = page.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
    assert widths[0] <= widths[1]

    *_, of_first, _, of_second = copied(page).splitlines()
    assert answer_in(sh(of_first, tmp_path))["text"] == third
    assert answer_in(sh(of_second, tmp_path))["text"] == fourth

    page.locator("#talk").get_by_role("button", name="Undo").click()
    page.locator("#beside").get_by_text(fourth, exact=True).wait_for(state="detached")
    page.locator("#talk").get_by_text(third, exact=True).wait_for(state="detached")
    assert page.locator("#beside").get_by_text(second, exact=True).is_visible()
    *_, of_first, _, of_second = copied(page).splitlines()
    assert answer_in(sh(of_first, tmp_path))["text"] == first
    assert answer_in(sh(of_second, tmp_path))["text"] == second


def test_settings_change_the_answer_and_a_drawn_one_is_got_again_with_curl(
    page: Any, assistants: dict[str, Any], tmp_path: Path
) -> None:
    page.get_by_text("Settings", exact=True).click()
    set_number(page, "Temperature", "1.5")
    set_number(page, "Longest answer, in tokens", "20")
    attach(page, "red.png", image())
    send(page, "What's 'it'? \"$HOME\" `id` é")
    page.locator("#talk .bot [data-testid=bot]").first.wait_for()
    command = copied(page)
    got = answer_in(sh(command, tmp_path))
    page.locator("#talk").get_by_text(got["text"], exact=True).wait_for()
    assert (got["temperature"], got["tokens"], got["model"]) == (1.5, 20, RUNS[0])
    assert answer_in(sh(command, tmp_path)) == got
    faults = [fault for fault in serious_faults(page) if not of_gradio(fault)]
    assert faults == []


def of_gradio(fault: tuple[str, str, str]) -> bool:
    """Return whether a fault is in an image of the conversation or in the line, drawn by Gradio."""
    rule, _, place = fault
    known = {"button-name": "image-frame", "label": 'data-testid="textbox"'}
    return rule in known and known[rule] in place


def test_a_chosen_model_answers_alone_and_about_it_is_its_own_card(
    page: Any, assistants: dict[str, Any]
) -> None:
    choose(page, "Model", RUNS[1])
    attach(page, "red.png", image())
    send(page, QUESTION)
    page.locator("#talk").get_by_text(
        assistants[RUNS[1]].ask(image(), QUESTION), exact=True
    ).wait_for()
    assert not page.locator("#beside").is_visible()


def test_the_limits_hold_for_programs_too(server: str, assistants: dict[str, Any]) -> None:
    with httpx.Client(base_url=server, timeout=60) as client:
        path = upload(client, image()).json()[0]
        for run in RUNS:
            answer = answer_in(ask(client, QUESTION, path, model=run))
            assert answer["text"] == assistants[run].ask(image(), QUESTION)
        for wrong, words in (
            ({"beams": 9}, "number of beams must be a number from 1 to 8"),
            ({"tokens": 10**6}, "longest answer in tokens must be"),
            ({"temperature": -1}, "temperature must be a number from 0 to 2"),
            ({"model": "../../etc"}, "no such model"),
            ({"model": 3}, "no such model"),
            ({"earlier": [["alone"]]}, "pairs"),
            ({"message": {"text": 5}}, "A message is"),
            ({"message": {"text": "x", "files": "ab"}}, "A message is"),
        ):
            said = ask(client, QUESTION, path, **wrong)
            assert "event: error" in said, wrong
            assert words in said, wrong


def test_the_commands_of_the_page_on_the_chat_ask_it(
    server: str, assistants: dict[str, Any], tmp_path: Path
) -> None:
    (block,) = re.findall(r"```bash\n(.*?)```", (ROOT / "docs" / "chat.md").read_text(), re.DOTALL)
    (tmp_path / "photo.jpg").write_bytes(image())
    answer = answer_in(sh(block.replace("http://127.0.0.1:7860", server), tmp_path))
    assert answer["text"] == assistants[RUNS[0]].ask(image(), "What is red?")


def test_a_page_of_another_site_that_resolves_to_this_machine_is_refused(server: str) -> None:
    port = server.rpartition(":")[2]
    with httpx.Client(base_url=server, timeout=60) as client:
        for host in ("evil.example", f"evil.example:{port}", f"127.0.0.1.evil.example:{port}", ""):
            for way, place in (("GET", "/"), ("GET", "/config"), ("POST", "/gradio_api/upload")):
                refused = client.request(way, place, headers={"Host": host})
                assert refused.status_code == 400, (host, place)
                assert "phivision" not in refused.text
        for host in (f"localhost:{port}", f"LOCALHOST:{port}", "127.0.0.1", f"[::1]:{port}"):
            assert client.get("/config", headers={"Host": host}).status_code == 200, host


def test_with_a_password_curl_logs_in_and_any_name_is_served(
    tiny_bundle: Path, browser: Any, assistant: Any, tmp_path: Path
) -> None:
    arguments = ["flows.cli", "chat", "--bundle", str(tiny_bundle), "--port", "0", "--user", USER]
    environment = os.environ | {"PHIVISION_CHAT_PASSWORD": PASSWORD}
    with serving(tmp_path / "asked", arguments, environment) as address:
        context = browser.new_context()
        context.grant_permissions(["clipboard-read", "clipboard-write"])
        context.request.post(f"{address}/login", form={"username": USER, "password": PASSWORD})
        page = context.new_page()
        page.set_default_timeout(90_000)
        page.goto(address)
        page.locator("#line textarea:enabled").wait_for()
        assert page.locator("#models").count() == 0  # one bundle: nothing to choose
        attach(page, "red.png", image())
        send(page, QUESTION)
        page.get_by_text(assistant.ask(image(), QUESTION), exact=True).wait_for()
        page.locator("#line .submit-button").wait_for()
        command = copied(page)
        context.close()
        assert PASSWORD not in command
        got = sh(command, tmp_path, PHIVISION_CHAT_PASSWORD=PASSWORD)
        assert answer_in(got)["text"] == assistant.ask(image(), QUESTION)
        refused = sh(
            command.replace("-c ", "-c other-"), tmp_path / "..", PHIVISION_CHAT_PASSWORD="x"
        )
        assert "complete" not in refused
        login = httpx.get(address, headers={"Host": "chat.example"})
        assert login.status_code in (200, 401)  # a proxy may pass another name on


def test_a_model_that_learned_from_texts_alone_is_asked_without_an_image(
    tiny_bundle: Path, browser: Any, tmp_path: Path
) -> None:
    from model.assistant import Assistant

    folder = tmp_path / "talker"
    shutil.copytree(tiny_bundle, folder)
    card = json.loads((folder / "bundle.json").read_text())
    (folder / "bundle.json").write_text(json.dumps({**card, "text_only": True}))
    said = Assistant(folder).ask(None, QUESTION)
    arguments = ["flows.cli", "chat", "--bundle", str(folder), "--port", "0"]
    with serving(tmp_path / "asked", arguments, os.environ) as address:
        context = browser.new_context()
        context.grant_permissions(["clipboard-read", "clipboard-write"])
        page = context.new_page()
        page.set_default_timeout(90_000)
        page.goto(address)
        page.locator("#line textarea:enabled").wait_for()
        page.get_by_text("Ask something, or add or paste an image").wait_for()
        send(page, QUESTION)
        page.get_by_text(said, exact=True).wait_for()
        page.locator("#line .submit-button").wait_for()
        assert answer_in(sh(copied(page), tmp_path))["text"] == said
        context.close()
