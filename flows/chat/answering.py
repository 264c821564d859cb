"""What the page and programs call: one answer, or two models' answers to the same message."""

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from flows.chat.errors import ChatError
from flows.chat.history import Subject, alongside, subject_of, turns_in
from flows.chat.settings import AnswerSettings, settings_for
from flows.chat.talk import Reply, Talk

Message = dict[str, Any]
Replies = Generator[Reply]


@dataclass(frozen=True)
class Used:
    """How an answer was written, with which it can be written again.

    Attributes:
        model: Who answered.
        beside: Who answered beside it, "" for nobody.
        settings: How.
    """

    model: str
    beside: str
    settings: AnswerSettings


UsedAt = dict[int, Used]  # by the number of the visitor's message, counted from 1


class Shown(NamedTuple):
    """What the page shows while an answer grows.

    Attributes:
        text: The answer so far.
        warning: About the image, "" if there is none.
        used: How it and the answers before it were written.
        beside: All messages of the second model's chat; empty without one.
    """

    text: str
    warning: str
    used: UsedAt
    beside: list[Message]


def answer_on_page(
    talk: Talk,
    message: Message,
    history: Sequence[Message],
    used: UsedAt | None,
    wanted: Sequence[Any],
    model: str = "",
    other: str = "",
    beside: Sequence[Message] = (),
) -> Iterator[Shown]:
    """Yield an answer as it grows, and that of a second model to the same message.

    Args:
        talk: Answers.
        message: Text and files.
        history: Earlier messages.
        used: How their answers were written.
        wanted: Temperature, tokens, beams and seed.
        model: Who answers; "" is the first model.
        other: Who answers beside it; "" for nobody.
        beside: The second model's earlier messages.

    Raises:
        ChatError: The message cannot be answered.
    """
    text, files = message.get("text") or "", message.get("files") or []
    settings = settings_for(talk.models.get(model), talk.limits, *wanted)
    used = {**(used or {}), turns_in(history) + 1: Used(model, other, settings)}
    first = talk.answer(text, files, subject_of(history), model, settings)
    if not other:
        with closing(first):
            for reply in first:
                yield Shown(reply.text, reply.warning, used, [])
        return
    settings_for(talk.models.get(other), talk.limits, **asdict(settings))  # it may have less room
    asked = [*alongside(history, beside), _as_message(text, files)]
    second = talk.answer(text, files, subject_of(asked[:-1]), other, settings)
    labels = talk.models.label(model), talk.models.label(other)
    for one, two in _side_by_side(first, second):
        warning = "\n\n".join(
            f"{label}: {reply.warning}"
            for label, reply in zip(labels, (one, two), strict=True)
            if reply.warning
        )
        yield Shown(one.text, warning, used, [*asked, {"role": "assistant", "content": two.text}])


def answer_program(
    talk: Talk, message: Any, earlier: Any, model: Any, wanted: Sequence[Any]
) -> Iterator[dict[str, Any]]:
    """Yield an answer as it grows, with all that it takes to get it again.

    Args:
        talk: Answers.
        message: `text`, and `files` with the paths that the uploads of the images returned.
        earlier: Pairs of question and answer about the images.
        model: Who answers; "" is the first model.
        wanted: Temperature, tokens, beams and seed.

    Raises:
        ChatError: The message cannot be answered, or has another form.
    """
    text, files = _message(message)
    turns = _turns(earlier)
    name = model if isinstance(model, str) else "?"
    settings = settings_for(talk.models.get(name), talk.limits, *wanted)
    subject = Subject(tuple(map(Path, files)), turns)
    talk.check(text, files)
    with closing(talk.reply(subject, text, name, settings)) as replies:
        for reply in replies:
            yield {**reply._asdict(), "model": name or talk.models.first, **asdict(settings)}


def _side_by_side(first: Replies, second: Replies) -> Iterator[tuple[Reply, Reply]]:
    """Yield two answers that grow in turn, until both are whole."""
    latest = [Reply("", ""), Reply("", "")]
    with closing(first), closing(second):
        growing = {0: first, 1: second}
        while growing:
            for at, answer in list(growing.items()):
                reply = next(answer, None)
                if reply is None:
                    del growing[at]
                else:
                    latest[at] = reply
                    yield latest[0], latest[1]


def _as_message(text: str, files: Sequence[str]) -> Message:
    """Return a message as the chat shows it."""
    return {
        "role": "user",
        "content": [*({"path": file} for file in files), *([text] if text else [])],
    }


def _message(message: Any) -> tuple[str, list[str]]:
    """Return text and paths of what a program sent, which may be anything."""
    given = message if isinstance(message, dict) else {}
    text, files = given.get("text", ""), given.get("files", [])
    listed = files if isinstance(files, list) else [None]
    paths = [file.get("path") if isinstance(file, dict) else file for file in listed]
    named = [path for path in paths if isinstance(path, str)]
    if not isinstance(text, str) or len(named) < len(paths):
        raise ChatError('A message is {"text": "…", "files": ["path of an upload"]}.')
    return text, named


def _turns(earlier: Any) -> tuple[tuple[str, str], ...]:
    turns = [] if earlier is None else earlier
    are_pairs = isinstance(turns, list) and all(
        isinstance(turn, list) and [type(part) for part in turn] == [str, str] for turn in turns
    )
    if not are_pairs:
        raise ChatError('Earlier turns are pairs: [["question", "answer"], …].')
    return tuple((question, answer) for question, answer in turns)
