"""The HTTP interface: `/v1/chat/completions` and `/v1/models` of OpenAI, health and metrics."""

import asyncio
import json
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse

from flows.inference.answer import Piece
from flows.serve.completions import Delivery, Prepared, Service, usage
from flows.serve.errors import RequestError
from flows.serve.file_routes import file_routes
from flows.serve.messages import ChatBody

Pieces = AsyncGenerator[list[Piece]]
_LOOK_SECONDS = 0.5  # how often it is looked whether a client is still there


def build_app(service: Service) -> FastAPI:
    """Return the application; what the engine writes is taken while it runs."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None]:
        with service.engine.running():
            yield

    app = FastAPI(title="phivision", lifespan=lifespan, docs_url=None, redoc_url=None)
    name = str(service.assistant.card["name"])

    _add_refusals(app, service)
    app.include_router(file_routes(service))

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/metrics")
    async def metrics() -> Response:
        return PlainTextResponse(service.metrics.text(), media_type="text/plain; version=0.0.4")

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        model = {"id": name, "object": "model", "created": 0, "owned_by": "phivision"}
        return {"object": "list", "data": [model]}

    @app.post("/v1/chat/completions")
    async def complete(body: ChatBody, request: Request) -> Response:
        if body.model and body.model != name:
            message = f"there is no model '{body.model}', only '{name}'"
            raise RequestError(message, 404, param="model", code="model_not_found")
        return await _complete(service, body, request)

    return app


def _add_refusals(app: FastAPI, service: Service) -> None:
    """Tell what cannot be answered in the form that OpenAI's clients read."""

    @app.exception_handler(RequestError)
    async def refused(_: Request, error: RequestError) -> Response:
        service.metrics.requests.labels(str(error.status)).inc()
        headers = {"Retry-After": "1"} if error.status == 429 else None
        return JSONResponse(error.body(), error.status, headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        field = ".".join(str(step) for step in first["loc"][1:])
        return await refused(request, RequestError(f"{field}: {first['msg']}", param=field))


async def _complete(service: Service, body: ChatBody, request: Request) -> Response:
    """Answer a request, streamed or at once."""
    name = str(service.assistant.card["name"])
    delivery = Delivery(service.metrics, whole=not body.stream)
    prepared = await service.begin(body, delivery)
    head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": name}
    pieces = delivery.pieces()
    try:
        # A refusal has its own status only before anything is sent.
        first = await _first(request, pieces)
    except BaseException:
        prepared.leave()
        raise
    if first is None:
        prepared.leave()
        return Response(status_code=499)
    service.metrics.requests.labels("200").inc()
    if not body.stream:
        return _whole(head, prepared, first[-1])
    events = _events(head, prepared, first, pieces, with_usage=body.with_usage)
    return Stream(events, prepared.leave)


class Stream(StreamingResponse):
    """A streamed answer, whose place is free once it ends, however early its client leaves.

    A client that leaves before the first byte ends it before `events` has begun, so that nothing
    inside of that generator can free the place.
    """

    def __init__(self, events: AsyncGenerator[str], leave: Callable[[], None]) -> None:
        super().__init__(events, media_type="text/event-stream")
        self._leave = leave

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Send the answer."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._leave()


async def _first(request: Request, pieces: Pieces) -> list[Piece] | None:
    """Return the first pieces of an answer, None where the client has left before."""
    coming = asyncio.ensure_future(anext(pieces))
    try:
        while not (await asyncio.wait({coming}, timeout=_LOOK_SECONDS))[0]:
            if await request.is_disconnected():
                return None
        return coming.result()
    finally:
        coming.cancel()


def _whole(head: Mapping[str, Any], prepared: Prepared, piece: Piece) -> Response:
    """Return an answer at once."""
    message = {"role": "assistant", "content": piece.text}
    choice = {"index": 0, "message": message, "finish_reason": piece.reason, "logprobs": None}
    completion = {**head, "object": "chat.completion", "choices": [choice]}
    return JSONResponse({**completion, "usage": usage(prepared, piece.tokens)})


async def _events(
    head: Mapping[str, Any],
    prepared: Prepared,
    first: list[Piece],
    pieces: Pieces,
    *,
    with_usage: bool,
) -> AsyncGenerator[str]:
    """Yield an answer as server-sent events, those that are there together in one text."""

    def event(delta: Mapping[str, str], reason: str | None = None, **more: Any) -> str:
        choice = {"index": 0, "delta": delta, "finish_reason": reason, "logprobs": None}
        chunk = {**head, "object": "chat.completion.chunk", "choices": [choice], **more}
        return f"data: {json.dumps(chunk, ensure_ascii=False)}\n\n"

    def events(piece: Piece) -> str:
        text = event({"content": piece.text}) if piece.text else ""
        if not piece.reason:
            return text
        counts = event({}, choices=[], usage=usage(prepared, piece.tokens)) if with_usage else ""
        return f"{text}{event({}, piece.reason)}{counts}data: [DONE]\n\n"

    begin = event({"role": "assistant", "content": ""})
    try:
        yield begin + "".join(map(events, first))
        async for batch in pieces:
            yield "".join(map(events, batch))
    except RequestError as error:
        yield f"data: {json.dumps(error.body())}\n\n"
