"""The addresses under `/v1/files`: upload an image, list, look up and delete what was uploaded."""

from typing import Annotated, Any

from fastapi import APIRouter, Form, UploadFile
from starlette.concurrency import run_in_threadpool

from flows.serve.completions import Service
from flows.serve.errors import RequestError
from model.errors import ModelError


def file_routes(service: Service) -> APIRouter:
    """Return the routes of a server's files."""
    router, files = APIRouter(prefix="/v1/files"), service.files

    @router.post("")
    async def upload(file: UploadFile, purpose: Annotated[str, Form()]) -> dict[str, Any]:
        files.check(file.size, purpose)
        data = await file.read()
        try:
            await run_in_threadpool(service.engine.prepare, data)
        except ModelError as error:
            raise RequestError(error.sentence, param="file") from None
        return files.file_object(files.add((file.filename or "")[:255], data, purpose))

    @router.get("")
    async def listed() -> dict[str, Any]:
        objects = [files.file_object(file) for file in files.listed()]
        return {"object": "list", "data": objects, "has_more": False}

    @router.get("/{name}")
    async def look_up(name: str) -> dict[str, Any]:
        return files.file_object(files.get(name))

    @router.delete("/{name}")
    async def delete(name: str) -> dict[str, Any]:
        files.remove(name)
        return {"id": name, "object": "file", "deleted": True}

    return router
