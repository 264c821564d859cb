"""Making examples of some thousand filtered texts at a time, here or in other processes.

The invariant: what a piece becomes follows from its texts and from what all pieces have in common,
so it does not matter which process makes it.
"""

import shutil
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import pyarrow as pa

from model.prompt import PromptTemplate
from model.prompt_batches import BatchTemplate, one_thread_per_tokenizer
from pipeline.data.filters import MACROS
from pipeline.data.further_images import add_further
from pipeline.data.known_tokens import KnownTokens
from pipeline.data.made_examples import MadeExamples
from pipeline.data.tokenized import Names, make_example, make_tokens, said_in
from pipeline.data.user_filtered import UserFilters
from pipeline.engine.processes import files_of
from pipeline.engine.spreading import in_order
from pipeline.engine.stage import FanOut, InputArtifact
from pipeline.interpreter import collecting_rarely
from pipeline.recipe.parts import ExamplesPart
from storage.errors import StorageError
from storage.tables import read_table, write_arrow

Row = dict[str, Any]
Piece = tuple[str, pa.Table]  # the kind of its texts, and these with their `reason` to be dropped
_READ = {
    "backbones": ("lm/tokenizer.json",),
    "images": ("images.parquet", "drops.parquet"),
    "features": ("nearest.parquet", "clip_scores.parquet"),
}


class ExampleMaker:
    """Makes examples of filtered texts, in one thread.

    Args:
        inputs: The stage's.
        images: What `image_columns` returns of them.
        examples: The recipe's part.
        stored: The other arguments of `PromptTemplate`.
        known: Finds tokens that were made before.
        executor: Runs tokenizers.
        threads: How many of them at once.
    """

    def __init__(
        self,
        inputs: Mapping[str, InputArtifact],
        images: pa.Table,
        examples: ExamplesPart,
        stored: Mapping[str, Any],
        known: KnownTokens,
        executor: Executor,
        threads: int,
    ) -> None:
        folder = inputs["backbones"].directory("lm")
        template = PromptTemplate.load(folder, **stored)
        self._batches, self._template = BatchTemplate(template, executor, threads), template
        self._examples, self._known = examples, known
        self._names, self._mine = Names(inputs["images"]), UserFilters(inputs, examples)
        self._images = images

    def make(self, kind: str, texts: pa.Table) -> MadeExamples:
        """Return what filtered texts of a kind become."""
        records: list[Row] = [{"kind": kind, **row} for row in texts.to_pylist()]
        if kind == "conversation":
            add_further(records, self._images, MACROS)
        before = self._known.made
        said = [said_in(record, self._examples) for record in records]
        limit = self._examples.max_tokens
        tokens = make_tokens([*filter(None, said)], self._batches, self._known, limit)
        drops: list[Row] = []
        late: list[Row] = []
        made = (
            make_example(*both, tokens, self._template, self._examples, self._names, drops)
            for both in zip(records, said, strict=True)
        )
        rows = self._mine.keep([row for row in made if row is not None], late)
        return MadeExamples.of(rows, drops, late, self._known.made - before)


def image_columns(images: InputArtifact) -> pa.Table:
    """Return the columns of the `images` table that filters may use."""
    return read_table(images.path("images.parquet")).drop_columns(["bytes", "url"])


class PieceJob(NamedTuple):
    """A piece that one process makes examples of; its texts are in a file."""

    number: int
    kind: str


@dataclass(frozen=True)
class PieceWork:
    """What all pieces have in common; it is sent to other processes.

    Attributes:
        inputs: The files that makers read, where every process sees them.
        earlier: Earlier artifacts with tokens.
        scratch: The stage's folder for what it may need again.
        examples: The recipe's part.
        stored: The other arguments of `PromptTemplate`.
        made_by: Digest of the template.
        texts: How many texts there are.
    """

    inputs: Mapping[str, InputArtifact]
    earlier: Sequence[InputArtifact]
    scratch: Path
    examples: ExamplesPart
    stored: Mapping[str, Any]
    made_by: str
    texts: int

    def source(self, number: int) -> Path:
        """Return the file with the texts of a piece."""
        return self.scratch / f"texts-{number:06d}.parquet"

    def result(self, number: int) -> Path:
        """Return the folder with what a piece became."""
        return self.scratch / f"made-{number:06d}"


def make_piece(work: PieceWork, job: PieceJob) -> int:
    """Make the examples of one piece, and return its number."""
    maker = _MAKERS.of(work)
    with one_thread_per_tokenizer(), collecting_rarely():
        made = maker.make(job.kind, read_table(work.source(job.number)))
    own = work.scratch / f"{uuid4().hex}.part"  # Dask may give a job to two workers
    made.write(own)
    try:
        own.rename(work.result(job.number))
    except OSError:  # another one was quicker
        shutil.rmtree(own)
    return job.number


class _Makers(threading.local):
    """Keeps the maker of a thread, since a worker makes many pieces of a dataset."""

    def __init__(self) -> None:
        self._latest: tuple[Path, ExampleMaker] | None = None

    def of(self, work: PieceWork) -> ExampleMaker:
        """Return what makes the examples of this work."""
        folder = work.scratch
        if self._latest is None or self._latest[0] != folder:
            earlier, executor = partial(tuple, work.earlier), ThreadPoolExecutor(1)
            known = KnownTokens(work.scratch, earlier, work.made_by, work.texts, keeps=False)
            sources = work.inputs, image_columns(work.inputs["images"])
            maker = ExampleMaker(*sources, work.examples, work.stored, known, executor, 1)
            self._latest = folder, maker
        return self._latest[1]


_MAKERS = _Makers()


def spread_pieces(
    fan_out: FanOut, work: PieceWork, pieces: Iterable[Piece]
) -> Iterator[MadeExamples]:
    """Yield what each piece becomes in other processes, in order.

    What a killed run has made is used again.
    """
    jobs = []
    for number, (kind, texts) in enumerate(pieces):
        write_arrow(work.source(number), texts)
        jobs.append(PieceJob(number, kind))
    make = partial(make_piece, work)
    for job in in_order(fan_out, make, jobs, lambda job: _is_made(work, job)):
        yield MadeExamples.read(work.result(job.number))


def _is_made(work: PieceWork, job: PieceJob) -> bool:
    folder = work.result(job.number)
    if not folder.is_dir():
        return False
    try:
        MadeExamples.read(folder)
    except StorageError:
        shutil.rmtree(folder)
        return False
    return True


def files_for(inputs: Mapping[str, InputArtifact]) -> dict[str, InputArtifact]:
    """Return the files of a stage's inputs that makers read, to be sent to other processes."""
    return {name: files_of(inputs[name], files) for name, files in _READ.items() if name in inputs}
