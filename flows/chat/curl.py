"""The newest answer of a chat as a command: what curl must send to get the same one again."""

import json
import shlex
from collections.abc import Sequence
from dataclasses import asdict, replace

from flows.chat.answering import Message, Used, UsedAt
from flows.chat.errors import ChatError
from flows.chat.history import Exchange, newest_of
from flows.chat.models import Models

_COOKIES = "phivision-cookies.txt"


def curl_commands(
    models: Models,
    history: Sequence[Message],
    beside: Sequence[Message],
    used: UsedAt,
    address: str,
    user: str | None,
) -> str:
    """Return shell commands that print the newest answer, of each model where two answered.

    Args:
        models: The models, for their labels.
        history: The messages, as Gradio's chat keeps them.
        beside: Those of the second model.
        used: How answers were written.
        address: Where the browser sees the page.
        user: Who is logged in, None where nobody has to.

    Raises:
        ChatError: Nothing was answered yet.
    """
    newest = newest_of(history)
    how = used.get(newest.turn) if newest else None
    if newest is None or how is None:
        raise ChatError("Ask something first.")
    lines = [*_before(address, user, newest), _events(address, user, newest, how)]
    second = newest_of(beside)
    if how.beside and second is not None and second.turn == newest.turn:
        lines.insert(-1, f"# {models.label(how.model)}")
        other = replace(how, model=how.beside)
        lines += [f"# {models.label(how.beside)}", _events(address, user, second, other)]
    return "\n".join(lines)


def _events(address: str, user: str | None, newest: Exchange, used: Used) -> str:
    """Return a command that prints an answer as it grows; its last event has all of it.

    Gradio starts an answer with one request and streams it with another. Images are named by their
    paths on the server, where the page has put them.
    """
    files = [str(image) for image in newest.subject.images]
    sent = {
        "message": {"text": newest.question, "files": files},
        "earlier": newest.subject.turns,
        "model": used.model,
        **asdict(used.settings),
    }
    base, curl = f"{address.rstrip('/')}/gradio_api/call", f"curl -s{_cookies(user)}"
    start = (
        f"{curl} {shlex.quote(f'{base}/v2/chat')} -H 'Content-Type: application/json' "
        f"-d {shlex.quote(json.dumps(sent, ensure_ascii=False))}"
    )
    return f'{curl} -N {shlex.quote(f"{base}/chat/")}"$({start} | cut -d \'"\' -f 4)"'


def _before(address: str, user: str | None, newest: Exchange) -> list[str]:
    """Return a command that logs in, where one must, and a comment on other images."""
    base, lines = address.rstrip("/"), []
    if user:
        lines.append(
            f"curl -s -o /dev/null -c {_COOKIES} {shlex.quote(f'{base}/login')} "
            f"--data-urlencode {shlex.quote(f'username={user}')} "
            '--data-urlencode "password=$PHIVISION_CHAT_PASSWORD"'
        )
    if newest.subject.images:
        upload = shlex.quote(f"{base}/gradio_api/upload")
        lines.append(
            "# For another image, upload it and put the path that this prints under files: "
            f"curl -s{_cookies(user)} {upload} -F files=@photo.jpg"
        )
    return lines


def _cookies(user: str | None) -> str:
    return f" -b {_COOKIES}" if user else ""
