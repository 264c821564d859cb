"""What the chat makes of messages, before any web code."""

from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from threading import Barrier, Event
from typing import Any

import numpy as np
import pytest
import torch

from flows.chat.errors import ChatError
from flows.chat.history import NOTHING, Subject, subject_of
from flows.chat.launching import Door
from flows.chat.limits import Limits
from flows.chat.models import only
from flows.chat.server import read_examples
from flows.chat.settings import settings_for
from flows.chat.talk import Talk
from flows.commands.chat import check_door
from flows.inference.engine import Engine
from flows.inference.limits import EngineLimits
from model.assistant import Assistant
from model.decoding import FORMATS
from pipeline.errors import PipelineError
from tests.support.tiny_bundle import image, texture

LIMITS = Limits(image_bytes=10_000, question_characters=50)


@pytest.fixture
def talk(assistant: Assistant, tmp_path: Path) -> Talk:
    (tmp_path / "red.png").write_bytes(image())
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "large.png").write_bytes(image() + bytes(10_000))
    return Talk(only(assistant), tmp_path, LIMITS)


def said(role: str, text: str, *files: str) -> dict[str, Any]:
    """Return a message as Gradio's chat keeps it."""
    parts: list[Any] = [{"type": "file", "file": {"path": file}} for file in files]
    return {"role": role, "content": [*parts, {"type": "text", "text": text}]}


def test_an_answer_is_the_assistants_own(talk: Talk, tmp_path: Path) -> None:
    red = str(tmp_path / "red.png")
    *_, (answer, warning) = talk.answer("What colour?", [red], Subject())
    assert not warning
    assert answer == talk.models.get().ask(image(), "What colour?")
    *_, (caption, _) = talk.answer("", [red], Subject())
    assert caption == talk.models.get().caption([image()])[0]
    history = [said("user", "What colour?", red), said("assistant", answer)]
    *_, (second, _) = talk.answer("How many?", [], subject_of(history))
    assert second == talk.models.get().ask(image(), "How many?", [("What colour?", answer)])


def test_a_question_is_about_all_images_of_its_message(tiny_bundle: Path, tmp_path: Path) -> None:
    assistant = Assistant(tiny_bundle)
    assistant.card["max_images"] = 2
    talk = Talk(only(assistant), tmp_path, LIMITS)
    files = []
    for colour in ("red", "blue"):
        (tmp_path / f"{colour}.png").write_bytes(image(colour))
        files.append(str(tmp_path / f"{colour}.png"))
    both = [image("red"), image("blue")]
    *_, (answer, _) = talk.answer("Which?", files, Subject())
    assert answer == assistant.ask(both, "Which?")
    history = [said("user", "Which?", *files), said("assistant", answer)]
    *_, (second, _) = talk.answer("Sure?", [], subject_of(history))
    assert second == assistant.ask(both, "Sure?", [("Which?", answer)])
    with pytest.raises(ChatError, match="2 images at most at a time"):
        talk.check("Which?", [*files, files[0]])
    with pytest.raises(ChatError, match="about one image"):
        talk.look(history)
    alone = Talk(only(Assistant(tiny_bundle)), tmp_path, LIMITS)
    with pytest.raises(ChatError, match="one image at a time"):
        alone.check("Which?", files)


def test_an_image_unlike_the_training_is_answered_with_a_warning_beside_the_text(
    wary_bundle: Path, tmp_path: Path
) -> None:
    (tmp_path / "sand.png").write_bytes(texture())
    (tmp_path / "red.png").write_bytes(image())
    talk = Talk(only(Assistant(wary_bundle)), tmp_path, Limits())
    sand = str(tmp_path / "sand.png")
    replies = list(talk.answer("What colour?", [sand], Subject()))
    assert {reply.warning for reply in replies} == {
        "This image is unlike those the model was trained on (discs): the answer may be a guess."
    }
    assert replies[-1].text == talk.models.get().ask(texture(), "What colour?")
    history = [said("user", "What colour?", sand), said("assistant", replies[-1].text)]
    *_, later = talk.answer("", [str(tmp_path / "red.png")], subject_of(history))
    assert not later.warning


def test_a_model_that_writes_nothing_says_so_and_it_is_no_part_of_what_was_said(
    talk: Talk, tmp_path: Path
) -> None:
    red = str(tmp_path / "red.png")
    head = talk.models.get().vlm.language_model.get_submodule("lm_head")
    bias = head.get_parameter("bias")
    before = bias.detach().clone()
    with torch.no_grad():
        bias[talk.models.get().template.eos_id] = 1e6
    try:
        assert list(talk.answer("What colour?", [red], Subject())) == [(NOTHING, "")]
    finally:
        with torch.no_grad():
            bias.copy_(before)
    history = [said("user", "What colour?", red), said("assistant", NOTHING)]
    assert subject_of(history) == Subject((Path(red),), ())


def test_an_assistant_with_beams_answers_the_chat_as_it_answers_ask(
    talk: Talk, tmp_path: Path
) -> None:
    searching = Assistant(talk.models.get().folder)
    searching.card["beams"] = 4
    expected = searching.ask(image(), "What colour?")
    assert expected != talk.models.get().ask(image(), "What colour?")
    answer = Talk(only(searching), tmp_path, LIMITS).answer(
        "What colour?", [str(tmp_path / "red.png")], Subject()
    )
    assert list(answer) == [(expected, "")]


def test_a_new_image_begins_a_new_subject() -> None:
    history = [
        said("user", "Which?", "old.png"),
        said("assistant", "This."),
        said("user", "", "new.png"),
        said("assistant", "A caption."),
        said("user", "How many?"),
        said("assistant", "Two."),
        said("user", "never answered"),
        said("user", "Where?"),
        said("assistant", ""),
    ]
    assert subject_of(history) == Subject((Path("new.png"),), (("How many?", "Two."),))
    assert subject_of([]) == Subject()
    assert (
        subject_of([{"role": "user", "content": ("strange", None)}, {"role": "user"}]) == Subject()
    )


@pytest.mark.parametrize(
    ("text", "file", "words"),
    [
        ("", "", "Write a question"),
        ("   ", "", "Write a question"),
        ("What?", "", "Add an image first"),
        ("x" * 51, "red.png", "at most 50"),
        ("What\ud83d?", "red.png", "an incomplete character. Please write it again"),
        ("What?", "text.png", "not an image"),
        ("What?", "large.png", "Please make it smaller"),
        ("What?", "gone.png", "add it again"),
        ("What?", "../outside.png", "add it again"),
        ("What?", "/etc/passwd", "add it again"),
        ("What?", "link.png", "add it again"),
    ],
)
def test_a_message_that_cannot_be_answered_says_what_to_do(
    talk: Talk, tmp_path: Path, text: str, file: str, words: str
) -> None:
    outside = tmp_path.parent / "outside.png"
    outside.write_bytes(image())
    (tmp_path / "link.png").symlink_to(outside)
    with pytest.raises(ChatError, match=words) as caught:
        list(talk.answer(text, [str(tmp_path / file)] if file else [], Subject()))
    assert str(tmp_path) not in str(caught.value)


@pytest.mark.parametrize("head", [b"\0\0\0\x18ftypheic", b"\0\0\0\x18ftypavif", b"<svg xmlns="])
def test_an_image_of_another_kind_is_answered_with_the_kinds_that_are_taken(
    talk: Talk, tmp_path: Path, head: bytes
) -> None:
    (tmp_path / "phone").write_bytes(head + bytes(99))
    with pytest.raises(ChatError) as caught:
        talk.check("What?", [str(tmp_path / "phone")])
    said = str(caught.value)
    assert said.startswith("Images of this kind cannot be read. Please send a JPEG, PNG")
    assert all(kind in said.upper() for kind in FORMATS)
    assert "b'" not in said


def test_a_question_of_too_many_tokens_is_refused(talk: Talk, tmp_path: Path) -> None:
    long = Talk(talk.models, tmp_path, Limits())
    with pytest.raises(ChatError, match="too long"):
        list(long.answer("why " * 240, [str(tmp_path / "red.png")], Subject()))


def test_a_stopped_answer_computes_no_more_tokens_and_frees_its_place(
    talk: Talk, tmp_path: Path
) -> None:
    steps, may_go_on = count(1), Event()
    inner = talk.models.get().vlm.language_model.get_submodule("model")

    def after_a_step(*_: Any) -> None:
        if next(steps) == 2:  # by then the first token has been shown
            may_go_on.wait(30)

    hook = inner.register_forward_hook(after_a_step)
    try:
        answer = talk.answer("What colour?", [str(tmp_path / "red.png")], Subject())
        next(answer)
        answer.close()
        may_go_on.set()
        # A job that comes after the step that was at work.
        assert talk.models.engine().run(lambda: next(steps)) == 3
        assert talk.models.engine().run(lambda: talk.models.engine().active) == 0
    finally:
        hook.remove()


def test_visitors_at_once_get_the_answers_that_they_would_get_alone(
    talk: Talk, tmp_path: Path
) -> None:
    assistant, red = talk.models.get(), str(tmp_path / "red.png")
    kinds: list[dict[str, Any]] = [{}, {"temperature": 1.5, "seed": 3}, {"beams": 3}, {"tokens": 4}]
    asked = [(f"What is number {n}?", kinds[n % 4]) for n in range(12)]
    expected = []
    for question, wanted in asked:
        settings = settings_for(assistant, LIMITS, **wanted)
        told = {"decoding": settings.decoding, "max_new_tokens": settings.tokens}
        *_, text = assistant.stream(image(), question, **told)
        expected.append(text)
    assert len(set(expected)) > 6  # so that a mixed-up answer is seen
    newest = [said("user", "What colour?", red), said("assistant", "A disc.")]
    alone = np.asarray(talk.look(newest))
    begin = Barrier(len(asked) + 1)

    def ask(number: int) -> str:
        question, wanted = asked[number]
        begin.wait()
        settings = settings_for(assistant, LIMITS, **wanted)
        *_, last = talk.answer(question, [red], Subject(), settings=settings)
        return last.text

    def look() -> np.ndarray:
        begin.wait()
        return np.asarray(talk.look(newest))

    with ThreadPoolExecutor(len(asked) + 1) as crowd:
        looking = crowd.submit(look)
        assert list(crowd.map(ask, range(len(asked)))) == expected
        assert np.array_equal(looking.result(), alone)


def test_what_the_engine_refuses_is_told(talk: Talk, tmp_path: Path) -> None:
    red, engine = str(tmp_path / "red.png"), Engine(talk.models.get(), EngineLimits(waiting=0))
    talk.models._loaded[talk.models.first] = engine
    with pytest.raises(ChatError, match="Too many questions wait now"):
        list(talk.answer("What?", [red], Subject()))
    with engine.running():
        pass
    history = [said("user", "What?", red), said("assistant", "A disc.")]
    with pytest.raises(ChatError, match="The server is stopping"):
        talk.look(history)
    with pytest.raises(ChatError, match="The server is stopping"):
        list(talk.answer("What?", [red], Subject()))


@pytest.mark.parametrize(
    ("door", "words"),
    [
        (Door(host="0.0.0.0"), "let everybody"),
        (Door(host="192.168.1.2", user="me"), "password"),
        (Door(user="me"), "password"),
        (Door(password="secret-word"), "user"),
    ],
)
def test_the_chat_is_never_open_by_oversight(door: Door, words: str) -> None:
    with pytest.raises(PipelineError, match=words) as caught:
        check_door(door)
    assert "secret-word" not in str(caught.value)


def test_loopback_is_the_default_and_a_password_opens_more() -> None:
    assert Door().host == "127.0.0.1"
    check_door(Door())
    check_door(Door(host="0.0.0.0", user="me", password="word"))


def test_examples_stay_in_their_folder(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    (tmp_path / "secret.png").write_text("secret")
    (source / "secret.png").write_bytes(image())
    listed = '[{"image": "../secret.png", "question": "What?"}]'
    (source / "examples.json").write_text(listed)
    (path, question) = read_examples(source, target)[0]
    assert question == "What?"
    assert Path(path).read_bytes() == image()
    assert read_examples(target, target) == []
