"""Which models a chat offers, how many it keeps, and two that answer the same message."""

from collections.abc import Callable
from pathlib import Path
from threading import Barrier, Thread
from typing import Any

import pytest

from flows.chat.answering import Shown, answer_on_page
from flows.chat.errors import ChatError
from flows.chat.history import alongside
from flows.chat.limits import Limits
from flows.chat.models import Models, Offer, only
from flows.chat.talk import Talk
from flows.commands.chat_models import models_to_chat
from model.assistant import Assistant
from model.errors import ModelError
from pipeline.errors import PipelineError
from pipeline.settings import Settings
from storage.store.artifacts import ArtifactStore
from storage.store.manifest import Manifest
from tests.support.several_assistants import record, vary
from tests.support.tiny_bundle import image, publish_tiny

RUNS = ("0000000001", "0000000002", "0000000003")


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """A store with three runs: the first one's assistant is published, the last has a tag."""
    root = tmp_path_factory.mktemp("several")
    settings = Settings(store=str(root / "store"), workdir=root / "work", device="cpu")
    store = ArtifactStore(settings.store, settings.work / "cache")
    publish_tiny(store, root / "made")
    made = [store.manifests("publish")[0]]
    made += [vary(store, made[0], root / "varied", half) for half in (0, 1)]
    for number, (run, manifest) in enumerate(zip(RUNS, made, strict=True), start=1):
        record(store, run, number, manifest, "good" if number == 3 else "")
    record(store, "0000000004", 4, made[0])  # a run with the first one's assistant again
    return settings


@pytest.fixture
def models(settings: Settings) -> Models:
    return models_to_chat(settings, None)


def said(role: str, text: str, *files: str) -> dict[str, Any]:
    parts: list[Any] = [{"type": "file", "file": {"path": file}} for file in files]
    return {"role": role, "content": [*parts, {"type": "text", "text": text}]}


# -- which are offered -------------------------------------------------------------------------


def test_the_published_one_is_first_and_each_assistant_is_offered_once(models: Models) -> None:
    assert models.choices == [
        ("0000000004 (published)", "0000000004"),
        ("0000000003 (good)", "0000000003"),
        ("0000000002", "0000000002"),
    ]
    assert models.first == "0000000004"


def test_the_run_that_is_asked_for_is_first(settings: Settings) -> None:
    store = settings.open_store()
    manifest = next(m for m in store.manifests("publish") if m.payload.get("half") == 0)
    assert [name for _, name in models_to_chat(settings, manifest).choices] == [
        "0000000002",
        "0000000004",
        "0000000003",
    ]


def test_a_bundle_is_offered_alone(settings: Settings, tiny_bundle: Path) -> None:
    assert models_to_chat(settings, str(tiny_bundle)).choices == [
        ("tiny-assistant", "tiny-assistant")
    ]


def test_an_assistant_whose_run_is_forgotten_can_still_be_talked_to(
    settings: Settings, tmp_path: Path
) -> None:
    store = ArtifactStore(str(tmp_path / "store"), tmp_path / "cache")
    publish_tiny(store, tmp_path / "made")
    models = models_to_chat(Settings(store=store.uri, workdir=tmp_path, device="cpu"), None)
    assert models.choices == [("published", "published")]


def test_nothing_published_is_told_by_the_command(tmp_path: Path) -> None:
    with pytest.raises(PipelineError):
        models_to_chat(Settings(store=str(tmp_path / "none"), workdir=tmp_path), None)


def test_a_damaged_assistant_is_told_to_the_visitor_without_its_path(
    settings: Settings, models: Models, capsys: pytest.CaptureFixture[str]
) -> None:
    store = settings.open_store()

    def bundle_of(manifest: Manifest) -> Path:
        return store.artifact(manifest).path("bundle.json")

    broken = next(m for m in store.manifests("publish") if m.payload.get("half") == 1)
    path, content = bundle_of(broken), bundle_of(broken).read_bytes()
    path.chmod(0o644)
    path.write_bytes(content[:-1])
    try:
        with pytest.raises(ChatError, match="cannot be loaded") as caught:
            models.get("0000000003")
        assert settings.store not in str(caught.value)
        assert "bundle.json" in capsys.readouterr().err
    finally:
        path.write_bytes(content)
    assert models.get("0000000003").card["name"] == "tiny-assistant"


# -- how many are kept -------------------------------------------------------------------------


def counted(assistant: Assistant, names: str, kept: int) -> tuple[Models, list[str]]:
    """Return models of one letter each, and the list of those that were loaded later."""
    loaded: list[str] = []

    def loading(name: str) -> Callable[[], Assistant]:
        def load() -> Assistant:
            loaded.append(name)
            return assistant

        return load

    offers = {name: Offer(name, loading(name)) for name in names}
    return Models(offers, kept, assistant), loaded


def test_two_are_kept_and_the_one_used_longest_ago_leaves(assistant: Assistant) -> None:
    models, loaded = counted(assistant, "abc", Limits().models)
    for name in ("", "a", "b", "a", "c", "a", "b"):
        models.get(name)
    assert loaded == ["b", "c", "b"]  # `a` was used in between and stayed


def test_visitors_who_choose_the_same_model_load_it_once(assistant: Assistant) -> None:
    models, loaded = counted(assistant, "ab", 2)
    start = Barrier(8)

    def choose() -> None:
        start.wait()
        models.get("b")

    crowd = [Thread(target=choose) for _ in range(8)]
    for each in crowd:
        each.start()
    for each in crowd:
        each.join()
    assert loaded == ["b"]


def test_a_model_that_is_not_offered_or_cannot_be_read_is_refused(assistant: Assistant) -> None:
    def fail() -> Assistant:
        raise ModelError("it is gone")

    models = Models({"a": Offer("a", lambda: assistant), "b": Offer("b", fail)}, 2, assistant)
    with pytest.raises(ChatError, match="no such model"):
        models.get("../a")
    with pytest.raises(ChatError, match="It is gone"):
        models.get("b")
    assert only(assistant).get() is assistant


# -- two answer --------------------------------------------------------------------------------


def test_two_models_answer_the_same_message_each_with_its_own_earlier_words(
    models: Models, tmp_path: Path
) -> None:
    (tmp_path / "red.png").write_bytes(image())
    red, talk = str(tmp_path / "red.png"), Talk(models, tmp_path, Limits())
    one, two = models.get("0000000002"), models.get("0000000003")
    message = {"text": "What colour?", "files": [red]}
    own = (0, None, None, None)
    shown = list(answer_on_page(talk, message, [], None, own, "0000000002", "0000000003"))
    first, second = one.ask(image(), "What colour?"), two.ask(image(), "What colour?")
    assert first != second
    assert (shown[-1].text, shown[-1].beside[-1]["content"]) == (first, second)
    grown = [(len(each.text), len(each.beside[-1]["content"])) for each in shown]
    assert any(0 < left < len(first) and 0 < right < len(second) for left, right in grown)

    history = [said("user", "What colour?", red), said("assistant", first)]
    beside = [said("user", "What colour?", red), said("assistant", second)]
    again = {"text": "How many?", "files": []}
    names = ("0000000002", "0000000003")
    *_, last = answer_on_page(talk, again, history, shown[-1].used, own, *names, beside)
    assert last.text == one.ask(image(), "How many?", [("What colour?", first)])
    words = last.beside[-1]["content"]
    assert words == two.ask(image(), "How many?", [("What colour?", second)])
    assert isinstance(last, Shown)
    assert sorted(last.used) == [1, 2]


def test_a_second_model_gets_the_questions_it_was_not_asked_without_the_others_answers() -> None:
    history = [
        said("user", "What colour?", "red.png"),
        said("assistant", "Red."),
        said("user", "How many?"),
        said("assistant", "One."),
    ]
    beside = [said("user", "What colour?", "red.png"), said("assistant", "Green.")]
    assert alongside(history, []) == [history[0], history[2]]
    assert alongside(history, beside) == [*beside, history[2]]
    later = [*beside, said("user", "How many?"), said("assistant", "Two."), said("user", "Why?")]
    assert alongside(history, later) == later[:4]
    assert alongside(history[:2], later) == beside  # after an undo or a retry
    other = [said("user", "Where?", "red.png"), said("assistant", "There.")]
    assert alongside(history[:2], other) == history[:1]
    assert alongside([], later) == []
