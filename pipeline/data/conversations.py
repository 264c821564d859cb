"""Stage `conversations`: LLaVA-Instruct JSON becomes one table of multi-turn conversations.

Records are read and written one after the other, so that memory does not grow with the file. Rows
are kept unfiltered, empty and odd ones included, because `examples` filters them in SQL and
gives a reason for each; only malformed records are dropped here.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from importlib import import_module
from itertools import count
from pathlib import Path
from typing import Any

from pipeline.data.llava import images_of, is_turn, read_records, record_id
from pipeline.data.schemas import CONVERSATIONS, DROPS, drop
from pipeline.engine.stage import StageContext, Summary
from pipeline.errors import PipelineError
from pipeline.hub.snapshots import HUB, Repository, at_commit, parse_address, repository_file
from pipeline.recipe.data_sources import (
    DemoConversations,
    FileConversations,
    HubConversations,
    MixtureConversations,
    NoConversations,
)
from pipeline.recipe.parts import ConversationsPart, ImagesPart
from storage.errors import redact
from storage.fetch.transfer import download
from storage.tables import write_table

LABEL = "conversations"  # of the state of a file


def conversations(
    context: StageContext,
    conversations: ConversationsPart,
    images: ImagesPart | None = None,
    *,
    seed: int,
) -> Summary:
    """Write `conversations` and `drops`; both are empty where there are captions only.

    Args:
        context: The stage's folders.
        conversations: The recipe's part.
        images: The part of the images, needed to render the demo's conversations.
        seed: Seed of that rendering.

    Raises:
        PipelineError: The file is not LLaVA-Instruct JSON, or holds no conversation.
        StorageError: The file cannot be fetched.
    """
    drops: list[dict[str, Any]] = []
    source = conversations.source
    if isinstance(source, NoConversations):
        return _write(context, [], drops)
    if isinstance(source, MixtureConversations):
        return _write(context, _of_mixture(context, conversations, source, drops), drops)
    path_and_name = _locate(context, source, images, seed)
    return _write(context, _read(*path_and_name, source.kind, conversations, drops), drops)


def _of_mixture(
    context: StageContext,
    part: ConversationsPart,
    mixture: MixtureConversations,
    drops: list[dict[str, Any]],
) -> Iterator[dict[str, Any]]:
    """Yield the conversations of all files, numbered as one table."""
    numbers = count()
    for name, source in sorted(mixture.sources.items()):
        scratch = context.scratch / name
        scratch.mkdir(exist_ok=True)
        state = {LABEL: context.source[name]} if name in context.source else {}
        inside = replace(context, scratch=scratch, source=state)
        lost: list[dict[str, Any]] = []
        limit = mixture.limits.get(name)
        rows = _read(*_locate(inside, source, None, 0), name, part, lost)
        for place, row in enumerate(rows):  # to the end: what is dropped is told of the whole file
            if limit is None or place < limit:
                yield {**row, "conversation_id": next(numbers)}
        drops += [{**row, "file": name} for row in lost]


def _read(
    path: Path, name: str, source: str, part: ConversationsPart, drops: list[dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    """Yield the conversations of a file; those without an image have no image name.

    Raises:
        PipelineError: It is not LLaVA-Instruct JSON, or holds no conversation.
    """
    is_empty = True
    for row in _rows(read_records(path, name), part, drops):
        is_empty = False
        yield {**row, "source": source}
    if is_empty:
        first = f"; the first: {drops[0]['reason']}, {drops[0]['detail']}" if drops else ""
        raise PipelineError(
            f"{redact(name)} holds no conversation about an image; "
            f"broken records: {len(drops)}{first}",
            "give a file in LLaVA-Instruct's format, or choose conversations.source.kind=none",
        )


def _write(
    context: StageContext, rows: Iterable[dict[str, Any]], drops: list[dict[str, Any]]
) -> Summary:
    """Write both tables; `drops` are complete when the last row has come."""
    turns = 0

    def counted() -> Iterator[dict[str, Any]]:
        nonlocal turns
        for row in rows:
            turns += len(row["turns"])
            yield row

    written = write_table(context.out / "conversations.parquet", counted(), CONVERSATIONS)
    write_table(context.out / "drops.parquet", drops, DROPS)
    return {"conversations": written, "turns": turns // 2, "broken_records": len(drops)}


def _locate(
    context: StageContext,
    source: DemoConversations | FileConversations | HubConversations,
    images: ImagesPart | None,
    seed: int,
) -> tuple[Path, str]:
    """Return the local file, and its name for messages."""
    target = context.scratch / "conversations.json"
    match source:
        case FileConversations(path=path, sha256=sha256) if path.startswith(HUB):
            repository, file = parse_address(path, "main")
            url, checksum = str(_hub_file(context, repository, file)), sha256
        case FileConversations(path=path, sha256=sha256):
            url, checksum = path if "://" in path else str(Path(path).expanduser()), sha256
        case HubConversations(repository=repository, filename=name, revision=revision):
            there = Repository(repository, revision, "dataset")
            return _hub_file(context, there, name), f"{repository}/{name}"
        case DemoConversations():
            assert images is not None  # the DAG passes them for the demo's conversations
            dataset = import_module(images.source.module)
            url, checksum = dataset.write_conversations(context, images, seed).as_uri(), None
    with context.report.track("fetch conversations", None) as tick:
        path = download(
            url,
            target,
            checksum=f"sha256:{checksum}" if checksum else None,
            size=None,
            advance=tick,
        )
    return path, url


def _hub_file(context: StageContext, repository: Repository, file: str) -> Path:
    """Return a file of the Hub at the commit that the fingerprint holds."""
    if not file:
        raise PipelineError(
            f"hf://{repository.name} names no file", "write hf://datasets/owner/name/file.json"
        )
    return repository_file(at_commit(repository, LABEL, context.source), file)


def _rows(
    records: Iterable[Any], part: ConversationsPart, drops: list[dict]
) -> Iterator[dict[str, Any]]:
    for number, record in enumerate(records):
        images = images_of(record)
        match record:
            case {"conversations": [*turns]} if (
                images and len(images) <= part.max_images and all(map(is_turn, turns))
            ):
                yield _row(number, record, images, turns)
            case {"conversations": [*turns]} if (
                part.text_only == "keep" and images == [] and all(map(is_turn, turns))
            ):
                yield _row(number, record, [], turns)
            case {"conversations": list()} if images == []:
                key = record_id(record, number)
                drops.append(drop("conversations", "conversation", key, "", "no image"))
            case {"conversations": list()} if images and len(images) > part.max_images:
                key, named = record_id(record, number), len(images)
                fault = ("too many images", f"{named}; conversations.max_images={named} keeps it")
                drops.append(drop("conversations", "conversation", key, images[0], *fault))
            case _:
                fault = ("broken record", f"{_fault(record)}: {json.dumps(record)[:200]}")
                drops.append(drop("conversations", "conversation", number, "", *fault))


def _row(number: int, record: dict, images: list[str], turns: list[Any]) -> dict[str, Any]:
    return {
        "conversation_id": number,
        "record_id": record_id(record, number),
        "image_name": images[0] if images else None,
        "more_images": images[1:],
        "turns": [{"speaker": turn["from"], "text": turn["value"]} for turn in turns],
    }


def _fault(record: object) -> str:
    """Return why a record is not a conversation about an image."""
    if not isinstance(record, dict):
        return "not an object"
    turns = record.get("conversations")
    if not isinstance(turns, list):
        return "no list 'conversations'"
    if not all(map(is_turn, turns)):
        return "a turn without 'from' or 'value'"
    return "'image' is neither text nor a list of texts"
