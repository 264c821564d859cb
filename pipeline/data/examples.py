"""Stage `examples`: filtered text about usable images becomes token ids with their loss mask.

Every caption and conversation either becomes an example or a row of `drops` with one reason.
"""

import json
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa

from model.prompt_batches import one_thread_per_tokenizer
from pipeline.data.example_checks import Checks
from pipeline.data.example_pieces import (
    ExampleMaker,
    Piece,
    PieceWork,
    files_for,
    image_columns,
    spread_pieces,
)
from pipeline.data.example_tables import ExampleTables
from pipeline.data.filtered import (
    CONVERSATIONS_AT_ONCE,
    filtered_captions,
    filtered_conversations,
)
from pipeline.data.known_tokens import KnownTokens, template_digest
from pipeline.data.lm_folder import eos_id
from pipeline.data.made_examples import MadeExamples
from pipeline.engine.stage import StageContext, Summary
from pipeline.interpreter import collecting_rarely
from pipeline.recipe.parts import ExamplesPart
from storage.tables import read_batches, read_table

# As Python objects, examples take about 1 kB for each hundred tokens.
_CAPTIONS_AT_ONCE, _TALKS_AT_ONCE = 8192, 2048
_SPREAD = 65_536  # texts up to which other processes cost more than they save


def examples(context: StageContext, examples: ExamplesPart, seed: int) -> Summary:
    """Write `examples`, `questions`, `drops`, the keys of tokens and the prompt template.

    A killed run resumes at the first batch that was not tokenized, and a text that was tokenized
    for an earlier artifact of the store is not tokenized again.

    Raises:
        PipelineError: Nothing is left to train on, to validate with or to test with, or an
            image is both trained on and tested with.
    """
    del seed  # filters and tokenization are deterministic
    folder = context.inputs["backbones"].directory("lm")
    stored: dict[str, Any] = {
        **_prefixes(folder, examples),
        "caption_question": examples.caption_question,
    }
    made_by, checks = template_digest(folder, stored), Checks()
    with ExampleTables(context.out, made_by) as tables:
        for made in _made(context, examples, stored, made_by):
            checks.add(made)
            tables.add(made)
    checks.refuse_empty(_kinds(context))
    checks.refuse_leaks()
    (context.out / "template.json").write_text(json.dumps(stored, indent=1))
    return checks.summary()


def _made(
    context: StageContext, examples: ExamplesPart, stored: Mapping[str, Any], made_by: str
) -> Iterator[MadeExamples]:
    """Yield what texts become, some thousand at a time, made here or in other processes."""
    texts, images = sum(map(len, _texts(context))), image_columns(context.inputs["images"])
    known = KnownTokens(context.scratch, context.earlier, made_by, texts)
    pieces, threads = _filtered(context, examples, images), context.settings.threads
    with ExitStack() as stack:
        tick = stack.enter_context(context.report.track("tokenize", texts))
        if context.fan_out is not None and texts > _SPREAD:
            sources = files_for(context.inputs), known.sent(), context.scratch.resolve()
            work = PieceWork(*sources, examples, stored, made_by, texts)
            spread = spread_pieces(context.fan_out, work, pieces)
        else:
            stack.enter_context(one_thread_per_tokenizer())
            stack.enter_context(collecting_rarely())
            threads = threads or os.cpu_count() or 1
            executor = stack.enter_context(ThreadPoolExecutor(threads))
            inputs = context.inputs, images
            maker = ExampleMaker(*inputs, examples, stored, known, executor, threads)
            spread = (maker.make(kind, some) for kind, some in pieces)
        for made in spread:
            yield made
            tick(len(made.examples) + len(made.drops) + len(made.late))


def _prefixes(folder: Path, examples: ExamplesPart) -> dict[str, Any]:
    """Return the text around questions and answers, and the id that ends an answer."""
    if examples.template != "plain":
        from model.chat_template import chat_pieces  # transformers takes seconds

        pieces = chat_pieces(folder, None if examples.template == "auto" else examples.template)
        if pieces is not None:
            return {"user_prefix": "", **asdict(pieces)}
    return {
        "eos_id": eos_id(folder),
        "user_prefix": examples.user_prefix,
        "assistant_prefix": examples.assistant_prefix,
    }


def _filtered(context: StageContext, examples: ExamplesPart, images: pa.Table) -> Iterator[Piece]:
    """Yield captions, then conversations, each with its `reason` to be dropped or None."""
    yield from _captions(context, images, examples)
    yield from _conversations(context, images, examples)


def _captions(context: StageContext, images: pa.Table, examples: ExamplesPart) -> Iterator[Piece]:
    captions = read_table(context.inputs["images"].path("captions.parquet"))
    for table in filtered_captions(captions, images, examples):
        for start in range(0, len(table), _CAPTIONS_AT_ONCE):
            yield "caption", table.slice(start, _CAPTIONS_AT_ONCE)


def _conversations(
    context: StageContext, images: pa.Table, examples: ExamplesPart
) -> Iterator[Piece]:
    path = context.inputs["conversations"].path("conversations.parquet")
    names = read_table(path, ["conversation_id", "source", "image_name"])
    pieces = read_batches(path, CONVERSATIONS_AT_ONCE)
    for table in filtered_conversations(names, pieces, images, examples):
        for start in range(0, len(table), _TALKS_AT_ONCE):
            yield "conversation", table.slice(start, _TALKS_AT_ONCE)


def _texts(context: StageContext) -> tuple[pa.Table, pa.Table]:
    """Return the captions and the conversations, without their columns."""
    captions = read_table(context.inputs["images"].path("captions.parquet"), [])
    return captions, read_table(context.inputs["conversations"].path("conversations.parquet"), [])


def _kinds(context: StageContext) -> tuple[str, ...]:
    """Return the kinds of texts that the sources hold, captions if they hold none."""
    captions, spoken = _texts(context)
    both = {"caption": len(captions) or not len(spoken), "conversation": len(spoken)}
    return tuple(kind for kind, count in both.items() if count)
