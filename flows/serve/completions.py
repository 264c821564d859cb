"""One chat completion: what it asks is prepared, then written by the engine, piece by piece."""

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, Collection
from dataclasses import dataclass
from typing import Any

import torch

from flows.serve.answer import Answer, Piece
from flows.serve.engine import Engine, FullError
from flows.serve.errors import RequestError
from flows.serve.images import read_image
from flows.serve.limits import ServeLimits
from flows.serve.messages import ChatBody, asked_by
from flows.serve.metrics import Metrics
from model.assistant import Assistant
from model.batching import TextRequest
from model.errors import ModelError
from model.generation_configs import GenerationConfig, GreedyConfig, TopPConfig


@dataclass(frozen=True)
class Prepared:
    """A request that can be written.

    Attributes:
        patches: Its images [image, patch, vision].
        prompt: Token ids after the first image.
        images: How many images there are.
        longest: Tokens after which the answer is cut.
        prompt_tokens: Positions that were read before the answer.
    """

    patches: torch.Tensor
    prompt: list[int]
    images: int
    longest: int
    prompt_tokens: int


@dataclass
class Service:
    """All that answers requests.

    Attributes:
        assistant: Who answers.
        engine: Writes.
        metrics: Counts.
        limits: What a request may ask.
        hosts: Hosts from which images may be fetched.
    """

    assistant: Assistant
    engine: Engine
    metrics: Metrics
    limits: ServeLimits
    hosts: Collection[str]

    def prepare(self, body: ChatBody) -> Prepared:
        """Read the images and make the prompt; it takes a while, so it is called in a thread.

        Raises:
            RequestError: The request cannot be answered.
        """
        asked = asked_by(body.messages, self.limits)
        if len(body.stops) > self.limits.stops:
            raise RequestError(f"at most {self.limits.stops} stops are taken", param="stop")
        assistant = self.assistant
        longest = self._longest(body)
        try:
            prompt = assistant.prompt(asked.question, asked.history, longest, len(asked.urls))
            files = [read_image(url, self.hosts, self.limits) for url in asked.urls]
            patches = assistant.shown(files)
        except ModelError as error:
            raise RequestError(str(error), param="messages") from None
        read = len(prompt) + assistant.prefix * max(len(asked.urls), 1)
        return Prepared(patches, prompt, len(asked.urls), longest, read)

    def _longest(self, body: ChatBody) -> int:
        asked = body.max_completion_tokens or body.max_tokens
        most = max(
            min(self.limits.answer_tokens, self.assistant.most_tokens),
            self.assistant.card["max_new_tokens"],
        )
        if asked is not None and asked > most:
            raise RequestError(f"this assistant writes {most} tokens at most", param="max_tokens")
        return asked or self.assistant.card["max_new_tokens"]

    async def pieces(self, body: ChatBody, prepared: Prepared) -> AsyncGenerator[Piece]:
        """Yield the answer; a caller that stops listening frees its place.

        Raises:
            RequestError: Too many requests wait, or the answer cannot be written.
        """
        loop, begun = asyncio.get_running_loop(), time.monotonic()
        arrived: asyncio.Queue[Piece] = asyncio.Queue()

        def send(piece: Piece) -> None:
            loop.call_soon_threadsafe(arrived.put_nowait, piece)

        decode, longest = self.assistant.template.decode, prepared.longest
        answer = Answer(decode, longest, body.stops, send)
        request = TextRequest(
            prepared.patches,
            prepared.prompt,
            longest,
            decoding_of(body),
            answer.take,
            has_image=prepared.images > 0,
        )
        try:
            self.engine.submit(request, answer)
        except FullError:
            raise RequestError("too many requests wait, try again later", 429) from None
        first = True
        try:
            while True:
                piece = await arrived.get()
                if piece.error:
                    raise RequestError(piece.error, 500)
                if first:
                    self.metrics.first_token.observe(time.monotonic() - begun)
                    first = False
                yield piece
                if piece.reason:
                    self.metrics.tokens.inc(piece.tokens)
                    self.metrics.whole.observe(time.monotonic() - begun)
                    return
        finally:
            answer.leave()


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
