"""One chat completion: what it asks is prepared, then written by the engine, piece by piece."""

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

from starlette.concurrency import run_in_threadpool

from flows.inference.answer import Answer, Piece
from flows.serve.errors import RequestError
from flows.serve.files import PREFIX, Files
from flows.serve.images import DATA, read_image
from flows.serve.limits import ServeLimits
from flows.serve.messages import ChatBody, asked_by
from flows.serve.metrics import Metrics
from flows.serve.remote_engine import FullError, GoneError, Image, Order, RemoteEngine
from flows.serve.served import Served
from model.errors import ModelError
from model.generation_configs import GenerationConfig, GreedyConfig, TopPConfig

_SMALL = 200_000  # characters of an image that are decoded in less than a third of a millisecond


@dataclass(frozen=True)
class Prepared:
    """A request that is being written.

    Attributes:
        leave: Says that nobody waits for it any more.
        prompt_tokens: Positions that were read before the answer.
    """

    leave: Callable[[], None]
    prompt_tokens: int


class Delivery:
    """Carries an answer from what receives its tokens to what sends it, in one event loop.

    Args:
        metrics: Counts.
        whole: Whether it is delivered at once when it has ended, rather than piece by piece.
    """

    def __init__(self, metrics: Metrics, *, whole: bool) -> None:
        self._metrics, self._whole = metrics, whole
        self._begun = time.monotonic()
        self._arrived: asyncio.Queue[Piece] = asyncio.Queue()
        self._text, self._first = "", True

    def send(self, piece: Piece) -> None:
        """Take a piece."""
        if self._first and not piece.error:
            self._first = False
            self._metrics.first_token.observe(time.monotonic() - self._begun)
        self._text += piece.text
        if self._whole:
            if not piece.reason:
                return
            piece = piece._replace(text=self._text)
        self._arrived.put_nowait(piece)

    async def pieces(self) -> AsyncGenerator[list[Piece]]:
        """Yield pieces in their order, all that have come at a time.

        Raises:
            RequestError: The answer cannot be written.
        """
        while True:
            batch = [await self._arrived.get()]
            while not self._arrived.empty():
                batch.append(self._arrived.get_nowait())
            last = batch[-1]
            if last.error:
                raise RequestError(last.error, 500)
            if last.reason:
                self._metrics.tokens.inc(last.tokens)
                self._metrics.whole.observe(time.monotonic() - self._begun)
            yield batch
            if last.reason:
                return


@dataclass
class Service:
    """All that answers requests.

    Attributes:
        assistant: What is known of who answers.
        engine: Writes, in another process.
        metrics: Counts.
        limits: What a request may ask.
        hosts: Hosts from which images may be fetched.
        files: Uploaded images.
    """

    assistant: Served
    engine: RemoteEngine
    metrics: Metrics
    limits: ServeLimits
    hosts: Collection[str]
    files: Files

    async def begin(self, body: ChatBody, delivery: Delivery) -> Prepared:
        """Read the images, make the prompt and let the answer be written.

        Raises:
            RequestError: The request cannot be answered, or too many wait.
        """
        asked = asked_by(body.messages, self.limits)
        if len(body.stops) > self.limits.stops:
            raise RequestError(f"at most {self.limits.stops} stops are taken", param="stop")
        assistant, longest = self.assistant, self._longest(body)
        answer = Answer(assistant.template.decode, longest, body.stops, delivery.send)
        try:
            prompt = assistant.prompt(asked.question, asked.history, longest, len(asked.urls))
            order = Order([], prompt, longest, decoding_of(body), answer)
            if images := self._recalled(asked.urls):
                leave = self.engine.submit(replace(order, images=images))
            else:
                leave = await run_in_threadpool(self._read_and_submit, order, asked.urls)
        except ModelError as error:
            raise RequestError(error.sentence, param="messages") from None
        except FullError:
            raise RequestError("too many requests wait, try again later", 429) from None
        except GoneError:
            raise RequestError("the server is stopping", 503) from None
        return Prepared(leave, len(prompt) + assistant.prefix * max(len(asked.urls), 1))

    def _recalled(self, urls: Sequence[str]) -> list[Image]:
        """Return images without waiting where all are small and were sent before, else nothing."""
        images = []
        for url in urls:
            if len(url) > _SMALL or not url.startswith((DATA, PREFIX)):
                return []
            image = self.engine.recall(self._read(url))
            if image is None:
                return []
            images.append(image)
        return images

    def _read_and_submit(self, order: Order, urls: Sequence[str]) -> Callable[[], None]:
        """Let an answer be written; reading and decoding take a while, so it is for a thread."""
        images = [self.engine.prepare(self._read(url)) for url in urls]
        return self.engine.submit(replace(order, images=images))

    def _read(self, url: str) -> bytes:
        if url.startswith(PREFIX):
            return self.files.get(url).data
        return read_image(url, self.hosts, self.limits)

    def _longest(self, body: ChatBody) -> int:
        asked = body.max_completion_tokens or body.max_tokens
        most = self.assistant.most_tokens(self.limits.answer_tokens)
        if asked is not None and asked > most:
            raise RequestError(f"this assistant writes {most} tokens at most", param="max_tokens")
        return asked or self.assistant.card["max_new_tokens"]


def decoding_of(body: ChatBody) -> GenerationConfig:
    """Return how tokens are chosen: greedy unless a temperature above 0 is asked for."""
    if not body.temperature:
        return GreedyConfig()
    seed = secrets.randbelow(2**31) if body.seed is None else body.seed
    return TopPConfig(top_p=body.top_p or 1.0, temperature=body.temperature, seed=seed)


def usage(prepared: Prepared, tokens: int) -> dict[str, Any]:
    """Return counts of tokens as OpenAI's clients read them; positions of images count."""
    read = prepared.prompt_tokens
    return {"prompt_tokens": read, "completion_tokens": tokens, "total_tokens": read + tokens}
