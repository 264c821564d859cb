"""Stage `examples`: filtered text about usable images becomes token ids with their loss mask.

Every caption and conversation either becomes an example or a row of `drops` with one reason.
"""

import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa

from model.prompt import PromptTemplate
from model.prompt_batches import BatchTemplate, one_thread_per_tokenizer
from pipeline.data.example_checks import Checks
from pipeline.data.example_tables import ExampleTables
from pipeline.data.filtered import (
    CONVERSATIONS_AT_ONCE,
    filtered_captions,
    filtered_conversations,
)
from pipeline.data.filters import MACROS
from pipeline.data.further_images import add_further
from pipeline.data.known_tokens import KnownTokens, template_digest
from pipeline.data.lm_folder import eos_id
from pipeline.data.tokenized import Names, make_example, make_tokens, said_in
from pipeline.data.user_filtered import UserFilters
from pipeline.engine.stage import StageContext, Summary
from pipeline.interpreter import collecting_rarely
from pipeline.recipe.parts import ExamplesPart
from storage.tables import read_batches, read_table

Row = dict[str, Any]
# As Python objects, examples take about 1 kB for each hundred tokens.
_CAPTIONS_AT_ONCE, _TALKS_AT_ONCE = 8192, 2048


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
    template = PromptTemplate.load(folder, **stored)
    made_by = template_digest(folder, stored)
    known = KnownTokens(context, made_by, sum(map(len, _texts(context))))
    checks = Checks()
    with ExampleTables(context.out, made_by) as tables:
        for rows, drops, late in _made(context, examples, template, known):
            checks.add(rows, drops + late)
            tables.add(rows, drops, late)
    checks.refuse_empty(_kinds(context))
    checks.refuse_leaks()
    (context.out / "template.json").write_text(json.dumps(stored, indent=1))
    return {**checks.summary(), "tokenized": known.made}


def _made(
    context: StageContext, examples: ExamplesPart, template: PromptTemplate, known: KnownTokens
) -> Iterator[tuple[list[Row], list[Row], list[Row]]]:
    """Yield examples, drops, and the drops of the recipe's own filters, some thousand at a time."""
    names, mine = Names(context.inputs["images"]), UserFilters(context, examples)
    texts = sum(len(table) for table in _texts(context))
    threads = context.settings.threads or os.cpu_count() or 1
    with (
        context.report.track("tokenize", texts) as tick,
        one_thread_per_tokenizer(),
        collecting_rarely(),
        ThreadPoolExecutor(threads) as executor,
    ):
        batches = BatchTemplate(template, executor, threads)
        for records in _filtered(context, examples):
            said = [said_in(record, examples) for record in records]
            tokens = make_tokens([*filter(None, said)], batches, known, examples.max_tokens)
            drops: list[Row] = []
            late: list[Row] = []
            made = (
                make_example(*both, tokens, template, examples, names, drops)
                for both in zip(records, said, strict=True)
            )
            yield mine.keep([row for row in made if row is not None], late), drops, late
            tick(len(records))


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


def _filtered(context: StageContext, examples: ExamplesPart) -> Iterator[list[Row]]:
    """Yield captions, then conversations, each with its `reason` to be dropped or None."""
    images = read_table(context.inputs["images"].path("images.parquet"))
    images = images.drop_columns(["bytes", "url"])
    yield from _captions(context, images, examples)
    yield from _conversations(context, images, examples)


def _captions(
    context: StageContext, images: pa.Table, examples: ExamplesPart
) -> Iterator[list[Row]]:
    captions = read_table(context.inputs["images"].path("captions.parquet"))
    for table in filtered_captions(captions, images, examples):
        for start in range(0, len(table), _CAPTIONS_AT_ONCE):
            yield _rows(table.slice(start, _CAPTIONS_AT_ONCE), "caption")


def _conversations(
    context: StageContext, images: pa.Table, examples: ExamplesPart
) -> Iterator[list[Row]]:
    path = context.inputs["conversations"].path("conversations.parquet")
    names = read_table(path, ["conversation_id", "source", "image_name"])
    pieces = read_batches(path, CONVERSATIONS_AT_ONCE)
    for table in filtered_conversations(names, pieces, images, examples):
        for start in range(0, len(table), _TALKS_AT_ONCE):
            talks = _rows(table.slice(start, _TALKS_AT_ONCE), "conversation")
            add_further(talks, images, MACROS)
            yield talks


def _rows(table: pa.Table, kind: str) -> list[Row]:
    return [{"kind": kind, **row} for row in table.to_pylist()]


def _texts(context: StageContext) -> tuple[pa.Table, pa.Table]:
    """Return the captions and the conversations, without their columns."""
    captions = read_table(context.inputs["images"].path("captions.parquet"), [])
    return captions, read_table(context.inputs["conversations"].path("conversations.parquet"), [])


def _kinds(context: StageContext) -> tuple[str, ...]:
    """Return the kinds of texts that the sources hold, captions if they hold none."""
    captions, spoken = _texts(context)
    both = {"caption": len(captions) or not len(spoken), "conversation": len(spoken)}
    return tuple(kind for kind, count in both.items() if count)
