"""Tokens that were made before: by a run that was killed, or for an earlier artifact.

A text is tokenized once per key, which is a hash of the text, the image it is about and, for a
conversation, the limits that cut it; and per template, which is a hash of the tokenizer and of all
that a template adds to texts. The invariant: tokens found here are those that would be made, so a
stage that reuses them writes the same bytes as one that does not.

Tokens do not depend on the image. It is part of the key so that texts which many images share do
not send readers through the whole file: rows are then found in about the order they are asked for.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from model.prompt import Tokens
from pipeline.data.schemas import EXAMPLES, TOKEN_KEYS
from pipeline.engine.processes import Files, files_of
from pipeline.engine.stage import InputArtifact
from storage.errors import StorageError
from storage.tables import (
    ROW_GROUP,
    list_column,
    lists_of,
    read_group,
    read_metadata,
    read_table,
    write_arrow,
)

KEYS = "token_keys.parquet"  # of an artifact; row by row the keys of its `examples.parquet`
_TOKENS = "examples.parquet"
MADE_BY = "phivision.template"  # in the metadata of that file
_ROWS = ("turns", "input_ids", "supervised")
_PIECE = pa.schema([*TOKEN_KEYS, *(EXAMPLES.field(name) for name in _ROWS)])
_UNUSABLE = (StorageError, OSError, pa.ArrowException)


class Fitted(NamedTuple):
    """The tokens of a text, and how many turns of a conversation they hold."""

    turns: int
    tokens: Tokens


def template_digest(folder: Path, stored: Mapping[str, Any]) -> str:
    """Return a digest of all that gives a text its tokens.

    Args:
        folder: Holds `tokenizer.json`.
        stored: The other arguments of `PromptTemplate`.
    """
    tokenizer = hashlib.sha256((folder / "tokenizer.json").read_bytes()).hexdigest()
    return hashlib.sha256(json.dumps([tokenizer, stored]).encode()).hexdigest()


def key_of(sha256: str | None, content: Sequence[str | int]) -> bytes:
    """Return the key of a text.

    Args:
        sha256: Of the image that it is about, None without one.
        content: All that determines its tokens under one template: texts and numbers.
    """
    # Python's own notation tells all of these apart, in ASCII in every version, and is quick.
    return hashlib.blake2b(ascii((sha256, *content)).encode(), digest_size=16).digest()


@dataclass
class _Source:
    """A file with tokens, one row for each key, in groups of `ROW_GROUP` rows."""

    file: Callable[[], Path]
    rows: int
    is_lost: bool = False

    def group(self, number: int) -> pa.Table | None:
        """Return one group of rows, None if it cannot be read or has not as many as keys."""
        try:
            rows = None if self.is_lost else read_group(self.file(), number, _ROWS)
        except _UNUSABLE:
            rows = None
        if rows is None or len(rows) != min(ROW_GROUP, self.rows - number * ROW_GROUP):
            self.is_lost = True
            return None
        return rows


class KnownTokens:
    """Finds tokens by key, and keeps those that are new in the stage's scratch folder.

    It holds 20 bytes for each key, and one row group of tokens.

    Args:
        scratch: The stage's folder for what it may need again.
        earlier: Returns its earlier artifacts. The newest of this template are read, as many as
            are needed to know as many keys as this stage has texts.
        made_by: Digest of the template.
        texts: How many texts the stage has.
        keeps: Whether new tokens are kept in the folder.

    Attributes:
        made: How many were not known.
        artifacts: Those that are read.
    """

    def __init__(
        self,
        scratch: Path,
        earlier: Callable[[], Iterable[InputArtifact]],
        made_by: str,
        texts: int,
        *,
        keeps: bool = True,
    ) -> None:
        self._folder = scratch / f"tokens-{version('tokenizers')}"
        self._folder.mkdir(exist_ok=True)
        self._keeps, self.made, self.artifacts = keeps, 0, list[InputArtifact]()
        self._sources: list[_Source] = []
        self._starts = [0]  # of each source among all rows, and their end
        pieces = sorted(self._folder.glob("piece-*.parquet"))
        self._pieces = int(pieces[-1].stem.removeprefix("piece-")) + 1 if pieces else 0
        keys = [
            *(self._add(lambda path=path: path, path) for path in pieces),
            *self._of_artifacts(earlier, made_by, texts),
        ]
        self._index = _Index(keys)
        self._read: tuple[int, int, pa.Table | None] = (-1, -1, None)

    def _of_artifacts(
        self, earlier: Callable[[], Iterable[InputArtifact]], made_by: str, texts: int
    ) -> Iterator[NDArray[np.uint64]]:
        """Yield the keys of earlier artifacts, newest first."""
        known, ours = 0, version("tokenizers")
        for artifact in earlier():
            if known >= texts:
                return
            if KEYS not in artifact.names or artifact.packages.get("tokenizers", ours) != ours:
                continue
            if (keys := self._of_artifact(artifact, made_by)) is not None:
                known += len(keys)
                self.artifacts.append(artifact)
                yield keys

    def _of_artifact(self, artifact: InputArtifact, made_by: str) -> NDArray[np.uint64] | None:
        try:
            path = artifact.path(KEYS)
            if read_metadata(path).get(MADE_BY) != made_by:
                return None
        except _UNUSABLE:  # damaged, or removed meanwhile
            return None
        return self._add(lambda: artifact.path(_TOKENS), path)

    def sent(self) -> list[Files]:
        """Return the artifacts that are read in a form that can be sent to other processes."""
        sent = []
        for artifact in self.artifacts:
            with suppress(StorageError):  # gone, or damaged
                sent.append(files_of(artifact, (KEYS, _TOKENS)))
        return sent

    def _add(self, file: Callable[[], Path], path: Path) -> NDArray[np.uint64]:
        """Add a source and return the keys [row, half] that a file has for it."""
        try:
            column = read_table(path, ["key"])["key"].combine_chunks()
            keys = np.frombuffer(column.buffers()[1] or b"", np.uint64).reshape(-1, 2)
        except _UNUSABLE:  # half a file, after a failure of power
            keys = np.empty((0, 2), np.uint64)
        self._sources.append(_Source(file, len(keys)))
        self._starts.append(self._starts[-1] + len(keys))
        return keys

    def find(self, keys: Sequence[bytes]) -> dict[bytes, Fitted]:
        """Return the tokens of those keys that are known."""
        places = self._index.rows(keys)
        order = np.argsort(places, kind="stable")
        order = order[places[order] >= 0]
        sources = np.searchsorted(self._starts, places[order], side="right") - 1
        rows = places[order] - np.array(self._starts)[sources]
        groups = zip(sources.tolist(), (rows // ROW_GROUP).tolist(), range(len(order)), strict=True)
        found: dict[bytes, Fitted] = {}
        for (source, number), some in groupby(groups, key=lambda each: each[:2]):
            at = [place for _, _, place in some]
            table = self._rows(source, number)
            if table is not None:
                fitted = _fitted(table.take(rows[at] - number * ROW_GROUP))
                found |= zip((keys[place] for place in order[at]), fitted, strict=True)
        return found

    def _rows(self, source: int, number: int) -> pa.Table | None:
        if self._read[:2] != (source, number):
            self._read = source, number, None  # first, so that two groups are never held
            self._read = source, number, self._sources[source].group(number)
        return self._read[2]

    def keep(self, made: Mapping[bytes, Fitted]) -> None:
        """Write new tokens to a file that is whole or not there, whenever this process ends."""
        self.made += len(made)
        if not made or not self._keeps:
            return
        columns = {
            "key": pa.array([*made], pa.binary(16)),
            "turns": pa.array([fitted.turns for fitted in made.values()], pa.int32()),
            **{
                name: list_column(
                    [getattr(fitted.tokens, name) for fitted in made.values()], _PIECE.field(name)
                )
                for name in _ROWS[1:]
            },
        }
        path = self._folder / f"piece-{self._pieces:06d}.parquet"
        write_arrow(path, pa.table(columns, _PIECE))
        self._pieces += 1


class _Index:
    """Finds rows by keys of 16 bytes, without an object for each.

    Args:
        keys: Arrays [row, half] of keys, which follow each other.
    """

    def __init__(self, keys: Sequence[NDArray[np.uint64]]) -> None:
        halves = np.concatenate([np.empty((0, 2), np.uint64), *keys])
        self._order = np.argsort(halves[:, 0], kind="stable").astype(np.uint32)
        self._halves = halves[self._order].T.copy()

    def rows(self, keys: Sequence[bytes]) -> NDArray[np.int64]:
        """Return the row of each key, -1 for those that are not there."""
        if not len(self._order) or not keys:
            return np.full(len(keys), -1)
        first, second = np.frombuffer(b"".join(keys), np.uint64).reshape(-1, 2).T
        at = np.minimum(np.searchsorted(self._halves[0], first), len(self._order) - 1)
        is_same = (self._halves[0][at] == first) & (self._halves[1][at] == second)
        return np.where(is_same, self._order[at].astype(np.int64), -1)


def _fitted(rows: pa.Table) -> Iterator[Fitted]:
    columns = lists_of(rows["input_ids"]), lists_of(rows["supervised"])
    for turns, *tokens in zip(rows["turns"].to_pylist(), *columns, strict=True):
        yield Fitted(turns, Tokens(*tokens))
