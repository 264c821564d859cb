"""Where a model looked, as people meet it: text in a terminal, a drawing, the chat."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flows.chat.errors import ChatError
from flows.chat.history import NOTHING
from flows.chat.limits import Limits
from flows.chat.models import only
from flows.chat.talk import Talk
from flows.cli import main
from flows.commands.heat_text import heat_text
from flows.overlay import overlay, sheet
from model.assistant import Assistant
from model.patch_grid import Explanation, View
from tests.support.tiny_bundle import image

VIEW = View(16, 0, 64, 64)


def explanation(side: int = 3) -> Explanation:
    """Three words: one that hangs on one patch, one on two, one on none."""
    maps = np.zeros((3, side * side), np.float32)
    maps[0, side + 2] = 2.0
    maps[1, :2] = 0.5, 1.0
    maps[1, 2] = -9.0
    return Explanation(["red", "circle", "of"], maps, VIEW)


def test_the_grid_shows_each_word_with_its_top_patch_by_place() -> None:
    assert heat_text(explanation(), 80).splitlines() == [
        "red               circle            of",
        "row 2, column 3   row 1, column 2   no patch",
        "2.00 nats         1.00 nats         mattered",
        "······            ▒▒██··            ······",
        "····██            ······            ······",
        "······            ······            ······",
    ]


def test_the_grid_is_ascii_where_nothing_else_can_be_shown_and_wraps() -> None:
    text = heat_text(explanation(), 30, plain=True)
    assert text.isascii()
    assert text.split("\n\n")[0].splitlines() == [
        "red",
        "row 2, column 3",
        "2.00 nats",
        "......",
        "....##",
        "......",
    ]
    assert len(text.split("\n\n")) == 3


def test_the_patch_that_mattered_glows_and_what_is_not_seen_is_dark() -> None:
    values = explanation().maps[0]
    image = Image.new("RGB", (96, 64), "white")
    drawn = np.asarray(overlay(image, VIEW, values, 192), np.int32)
    assert drawn.shape == (128, 192, 3)
    glow, seen, outside = drawn[64, 140], drawn[20, 60], drawn[64, 10]
    assert glow[0] > 250
    assert glow[0] > glow[2] + 60  # orange
    assert outside.max() < seen.max() < 130
    # The third column of the middle row, in the part from 16 to 80 of 96 pixels.
    where = np.argwhere(drawn[..., 0] > 200)
    assert where.min(axis=0).tolist() == pytest.approx([43, 118], abs=1)
    assert where.max(axis=0).tolist() == pytest.approx([84, 159], abs=1)


def test_a_sheet_has_an_overlay_for_each_word() -> None:
    one = overlay(Image.new("RGB", (96, 64)), VIEW, explanation().maps[0])
    drawn = sheet(Image.new("RGB", (96, 64)), explanation())
    assert drawn.width >= 3 * one.width
    assert drawn.height >= one.height
    assert sheet(Image.new("RGB", (96, 64)), explanation(), 2).width < drawn.width
    many = Explanation(["a"] * 9, np.zeros((9, 9), np.float32), VIEW)
    assert sheet(Image.new("RGB", (96, 64)), many).height > 2 * one.height


def test_ask_why_prints_the_answer_then_the_grids_and_draws(
    tiny_bundle: Path, tmp_path: Path, assistant: Assistant, capsys: pytest.CaptureFixture[str]
) -> None:
    photo, drawing = tmp_path / "photo.png", tmp_path / "why.png"
    photo.write_bytes(image())
    question = "What colour is it?"
    main(["ask", str(photo), question, "--bundle", str(tiny_bundle)])
    plain = capsys.readouterr().out
    assert plain == f"{assistant.ask(image(), question)}\n"
    arguments = ["--bundle", str(tiny_bundle), "--why", "--output", str(drawing)]
    main(["ask", str(photo), question, *arguments])
    printed = capsys.readouterr().out
    assert printed.startswith(plain)
    for word in plain.split():
        assert printed.count(word) > 1
    assert "row " in printed
    assert "16 to 80 of 96 pixels across and 0 to 64 of 64 down" in printed
    assert str(drawing) in printed
    with Image.open(drawing) as drawn:
        assert drawn.format == "PNG"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--output", "why.png"], "--why"),
        (["--why", "--output", "why.txt"], "PNG"),
        (["--why", "--output", "nowhere/why.png"], "no such folder"),
    ],
)
def test_a_drawing_that_cannot_be_made_is_refused_first(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["ask", "nowhere.jpg", "What?", *arguments])
    assert words in capsys.readouterr().err


# -- the chat ----------------------------------------------------------------------------------


def said(role: str, text: str, *files: str) -> dict[str, Any]:
    """Return a message as Gradio's chat keeps it."""
    parts: list[Any] = [{"type": "file", "file": {"path": file}} for file in files]
    return {"role": role, "content": [*parts, {"type": "text", "text": text}]}


def png_of(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def test_the_chat_shows_where_it_looked_for_the_newest_answer(
    assistant: Assistant, tmp_path: Path
) -> None:
    red = tmp_path / "red.png"
    red.write_bytes(image())
    talk = Talk(only(assistant), tmp_path, Limits())
    first = assistant.ask(image(), "What colour?")
    history = [said("user", "What colour?", str(red)), said("assistant", first)]
    shown = talk.look(history)
    assert shown.size[0] > 0
    second = assistant.ask(image(), "How many?", [("What colour?", first)])
    later = [*history, said("user", "How many?"), said("assistant", second)]
    assert png_of(talk.look(later)) != png_of(shown)
    unanswered = [*history, said("user", "Why?"), said("assistant", NOTHING)]
    assert png_of(talk.look(unanswered)) == png_of(shown)
    caption = assistant.caption([image()])[0]
    talk.look([said("user", "", str(red)), said("assistant", caption)])


@pytest.mark.parametrize(
    "history",
    [
        [],
        [said("user", "What?")],
        [said("assistant", "Two.")],
        [said("user", "What?"), said("assistant", "Two.")],
        [said("user", "What?", "/etc/passwd"), said("assistant", "Two.")],
        [said("user", "What?", "red.png"), said("assistant", "word " * 300)],
        [said("user", "What?", "red.png"), said("assistant", "\ud83d")],
    ],
)
def test_what_cannot_be_shown_is_told(
    assistant: Assistant, tmp_path: Path, history: list[dict[str, Any]]
) -> None:
    (tmp_path / "red.png").write_bytes(image())
    for message in history:
        for part in message["content"]:
            if part["type"] == "file" and part["file"]["path"] == "red.png":
                part["file"]["path"] = str(tmp_path / "red.png")
    with pytest.raises(ChatError) as caught:
        Talk(only(assistant), tmp_path, Limits()).look(history)
    assert str(tmp_path) not in str(caught.value)
