"""What a chat was about so far, read from its messages as Gradio keeps them.

The images of a question are those that were sent last, together. New ones start a new subject:
what was said about others is not part of the prompt.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from model.asked import Turn

# Shown where the model ends its answer at once; it is not part of a later prompt.
NOTHING = "(The model wrote nothing about this.)"


@dataclass(frozen=True)
class Subject:
    """One or several images and what was said about them.

    Attributes:
        images: Their files; none before one was sent.
        turns: Questions with their answers, oldest first.
    """

    images: tuple[Path, ...] = ()
    turns: tuple[Turn, ...] = field(default=())


@dataclass(frozen=True)
class Exchange:
    """The newest answer of a chat and what it answers.

    Attributes:
        subject: The images, and what was said about them before.
        question: The message; "" asked for a caption.
        answer: The answer.
        turn: Which message of the visitor it answers, counted from 1.
    """

    subject: Subject
    question: str
    answer: str
    turn: int


def subject_of(history: Sequence[dict[str, Any]]) -> Subject:
    """Return the newest images of a chat and the questions that were answered about them."""
    images: tuple[Path, ...] = ()
    turns: list[Turn] = []
    question = ""
    for message in history:
        texts, files = parts_of(message.get("content"))
        if message.get("role") != "user":
            if question and texts and texts != NOTHING:
                turns.append((question, texts))
            question = ""
            continue
        if files:
            images, turns = tuple(map(Path, files)), []
        question = texts
    return Subject(images, tuple(turns))


def newest_of(history: Sequence[dict[str, Any]]) -> Exchange | None:
    """Return the newest answer that has words, with what it answers; None where there is none."""
    newest = max((at for at, each in enumerate(history) if _answered(each)), default=0)
    if not newest:
        return None
    question, files = parts_of(history[newest - 1].get("content"))
    subject = Subject(tuple(map(Path, files))) if files else subject_of(history[: newest - 1])
    answer, _ = parts_of(history[newest].get("content"))
    return Exchange(subject, question, answer, turns_in(history[:newest]))


def turns_in(history: Sequence[dict[str, Any]]) -> int:
    """Return how many messages of the visitor a chat has."""
    return sum(message.get("role") == "user" for message in history)


def _answered(message: dict[str, Any]) -> bool:
    """Return whether a message is an answer with words."""
    text, _ = parts_of(message.get("content"))
    return message.get("role") == "assistant" and bool(text) and text != NOTHING


def parts_of(content: Any) -> tuple[str, list[str]]:
    """Return the text of a message and the paths of its files."""
    texts, files = [], []
    for part in content if isinstance(content, list) else [content]:
        if isinstance(part, str):
            texts.append(part)
        elif isinstance(part, dict) and part.get("type") == "text":
            texts.append(str(part.get("text", "")))
        elif isinstance(part, dict):
            path = (part.get("file") or part).get("path")
            files += [str(path)] if path else []
    return " ".join(texts).strip(), files


def alongside(
    history: Sequence[dict[str, Any]], beside: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Return a second model's chat up to the same message as the first one's.

    It keeps its own answers. Where it was not asked it gets the question without an answer, because
    the first model's words are not its own.

    Args:
        history: The first model's chat before a message.
        beside: The second one's, which may lack questions, or have more after a retry or an undo.
    """
    messages: list[dict[str, Any]] = []
    own = _turns(beside)
    for at, turn in enumerate(_turns(history)):
        is_same = at < len(own) and _asked(own[at]) == _asked(turn)
        messages += own[at] if is_same else turn[:1]
    return messages


def _turns(history: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Return messages cut in front of each question."""
    turns: list[list[dict[str, Any]]] = []
    for message in history:
        if message.get("role") == "user" or not turns:
            turns.append([])
        turns[-1].append(message)
    return turns


def _asked(turn: Sequence[dict[str, Any]]) -> tuple[str, list[str]]:
    text, files = parts_of(turn[0].get("content"))
    return text, [Path(file).name for file in files]
