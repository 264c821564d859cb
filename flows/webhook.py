"""Delivers short texts to the address in `PHIVISION_WEBHOOK`, from a thread, at most once each.

The address is a secret: who knows it can write to the channel. So it is read from the environment
only and is no field of `Settings`, which Prefect stores as parameters; nothing here prints it.
"""

import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from queue import SimpleQueue
from urllib.parse import urlsplit

from pydantic import SecretStr

from pipeline.errors import PipelineError
from storage.errors import redact

VARIABLE = "PHIVISION_WEBHOOK"
LONGEST = 3000  # characters of a text; Slack advises 4,000
_THREAD = "phivision-webhook"
_PAUSES = (0.5, 2.0)  # seconds before the second and the third attempt
_NOT_TAKEN = {429, 500, 503}  # not 502 and 504: behind a proxy it may have been taken
_SLACK = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"})  # <!channel> would call people


def webhook_address() -> SecretStr | None:
    """Return the address that the environment names, None where it names none.

    Raises:
        PipelineError: It is not an HTTP address; the message does not repeat it.
    """
    text = os.environ.get(VARIABLE, "").strip()
    if not text:
        return None
    try:
        parts = urlsplit(text)
        fine = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:  # of the port, or of brackets
        fine = False
    if not fine or not text.isprintable() or " " in text:
        raise PipelineError(
            f"{VARIABLE} is not an address that begins with https:// or http://",
            "copy it again from the page of the webhook, or unset it",
        )
    return SecretStr(text)


class Webhook:
    """Posts texts as Slack's JSON, in order, while the caller goes on.

    Args:
        address: Where to.
        limit: Seconds that one request may take to connect, and then to be answered.
        say: Gets one line for each text that was not delivered; standard error by default.
    """

    def __init__(
        self, address: SecretStr, limit: float = 5.0, say: Callable[[str], None] | None = None
    ) -> None:
        self._address, self._limit, self._say = address, limit, say or _print
        self._texts: SimpleQueue[str | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._deliver, name=_THREAD, daemon=True)

    def send(self, text: str) -> None:
        """Have a text delivered, with the secrets of URLs in it masked; returns at once."""
        if not self._thread.is_alive():
            self._thread.start()
        self._texts.put(redact(text)[:LONGEST])

    def close(self, seconds: float = 10.0) -> None:
        """Wait until everything is delivered, but no longer than some seconds."""
        if not self._thread.is_alive():
            return
        self._texts.put(None)
        self._thread.join(seconds)
        if self._thread.is_alive():
            self._say(f"a notification is not delivered: no answer within {seconds:g} s")
            self._say = _nothing  # this was the line

    def _deliver(self) -> None:
        while (text := self._texts.get()) is not None:
            fault = self._post(text)
            if fault:
                self._say(f"a notification is not delivered: {fault}")

    def _post(self, text: str) -> str:
        """Return why a text is not delivered, or an empty string.

        It is sent again only where it was not taken: no connection, or the server says so. After
        any other failure it may have been, and would be read twice.
        """
        import httpx  # slow to import, and in most runs nothing is sent

        fault = ""
        for pause in (0.0, *_PAUSES):
            time.sleep(pause)
            try:
                # No redirect is followed: it would tell the text to somebody else.
                answer = httpx.post(
                    self._address.get_secret_value(),
                    json={"text": text.translate(_SLACK)},
                    timeout=self._limit,
                )
            except (httpx.ConnectError, httpx.ConnectTimeout):
                fault = "the webhook cannot be reached"
            except httpx.TimeoutException:
                return f"the webhook does not answer within {self._limit:g} s"
            except (httpx.HTTPError, httpx.InvalidURL, ValueError, OSError) as error:
                return f"the webhook does not answer properly ({type(error).__name__})"
            else:
                fault = "" if answer.is_success else f"the webhook answers {answer.status_code}"
                if answer.status_code not in _NOT_TAKEN:
                    return fault
        return fault


def _print(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _nothing(line: str) -> None:
    del line


def _not_ours(record: logging.LogRecord) -> bool:
    return record.threadName != _THREAD


# httpx logs each address that it asks; Prefect can be told to store what libraries log.
logging.getLogger("httpx").addFilter(_not_ours)
