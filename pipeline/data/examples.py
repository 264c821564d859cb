"""Stage `examples`: filtered text about usable images becomes token ids with their loss mask.

Every caption and conversation either becomes an example or a row of `drops` with one reason.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa

from model.prompt import MARKER, PromptTemplate, Tokens
from pipeline.data.example_checks import refuse_empty, refuse_leaks
from pipeline.data.filters import (
    CAPTION_FILTERS,
    CAPTIONS_SQL,
    CONVERSATION_FILTERS,
    CONVERSATIONS_SQL,
    MACROS,
    first_reason,
    parameters,
)
from pipeline.data.further_images import (
    Pair,
    add_further,
    named_in,
    of_turn,
    placed_pairs,
    readable,
)
from pipeline.data.lm_folder import eos_id
from pipeline.data.name_forms import Alikes
from pipeline.data.schemas import DROPS, EXAMPLES, QUESTIONS, drop
from pipeline.engine.stage import StageContext, Summary
from pipeline.recipe.embedding_columns import CLIP_SCORE, SIMILARITIES
from pipeline.recipe.parts import ExamplesPart
from pipeline.recipe.user_filters import apply_filters
from storage.sql.queries import Database
from storage.tables import read_table, where, write_table

Row = dict[str, Any]


def examples(context: StageContext, examples: ExamplesPart, seed: int) -> Summary:
    """Write `examples`, `questions`, `drops` and the prompt template.

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
    captions, conversations = _filtered(context, examples)
    files = _file_names(context)
    known = read_table(context.inputs["images"].path("images.parquet"), ["file_name"])
    alikes = Alikes(known["file_name"].to_pylist())
    drops: list[Row] = []
    rows: list[Row] = []
    with context.report.track("tokenize", len(captions) + len(conversations)) as tick:
        for record in (*captions, *conversations):
            made = _example(record, template, examples, files, alikes, drops)
            if made is not None:
                rows.append({"example_id": len(rows), **made})
            tick()
    rows = _user_filtered(context, examples, rows, drops)
    refuse_empty(rows, drops, _kinds(context))
    refuse_leaks(rows)
    questions = [{"question_id": number, **row} for number, row in enumerate(_questions(rows))]
    for row in rows:
        del row["pairs"], row["more"], row["further"]
    write_table(context.out / "examples.parquet", rows, EXAMPLES)
    write_table(context.out / "questions.parquet", questions, QUESTIONS)
    write_table(context.out / "drops.parquet", drops, DROPS)
    (context.out / "template.json").write_text(json.dumps(stored, indent=1))
    return _summary(rows, drops)


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


def _filtered(context: StageContext, examples: ExamplesPart) -> tuple[list[Row], list[Row]]:
    images, conversations = context.inputs["images"], context.inputs["conversations"]
    sources = {
        "images": read_table(images.path("images.parquet")),
        "captions": read_table(images.path("captions.parquet")),
        "conversations": read_table(conversations.path("conversations.parquet")),
    }
    with Database(sources, macros=MACROS) as database:
        captions = database.query(
            CAPTIONS_SQL.format(reason=first_reason(CAPTION_FILTERS)),
            parameters(
                examples,
                ("refusals", "caption_max_characters", "caption_min_words", "max_aspect_ratio"),
            ),
        )
        spoken = database.query(
            CONVERSATIONS_SQL.format(reason=first_reason(CONVERSATION_FILTERS)),
            parameters(examples, ("forbidden_answers", "max_aspect_ratio")),
        )
    talks = _rows(spoken, "conversation")
    add_further(talks, sources["images"], MACROS)
    return _rows(captions, "caption"), talks


def _rows(table: pa.Table, kind: str) -> list[Row]:
    return [{"kind": kind, **row} for row in table.to_pylist()]


def _file_names(context: StageContext) -> dict[int, str]:
    """Return the file name of every image by id, quarantined ones included."""
    images = context.inputs["images"]
    lost = where(read_table(images.path("drops.parquet")), kind="image").to_pylist()
    names = {
        int(row["record"]): row["file"] for row in lost if row["record"].lstrip("-").isdecimal()
    }
    known = read_table(images.path("images.parquet"), ["image_id", "file_name"]).to_pylist()
    return names | {row["image_id"]: row["file_name"] for row in known}


def _example(
    record: Row,
    template: PromptTemplate,
    examples: ExamplesPart,
    files: Mapping[int, str],
    alikes: Alikes,
    drops: list[Row],
) -> Row | None:
    """Return an example row, or None after adding the reason to `drops`."""
    kind, reason = record["kind"], record["reason"]
    key, talks = record[f"{kind}_id"], kind == "conversation"
    pairs: list[Pair] = []
    more, tokens = 0, None
    if reason is None and not talks:
        tokens = template.caption(record["caption"])
    elif reason is None:
        more, pairs = _turns(record, examples.max_turns)
        pairs, tokens = _fit(template, pairs, more, examples.max_tokens)
    if reason is None:
        reason = _token_reason(tokens, examples.max_tokens)
    if reason is not None or tokens is None:
        text = record.get("caption") or str(record.get("texts", ""))
        file = (record["image_name"] if talks else files.get(record["image_id"])) or ""
        if hint := alikes.hint(file) if reason == "image missing" else "":
            text = f"{hint}; {text}"
        drops.append(drop("examples", kind, key, file, str(reason), text))
        return None
    further = record["further"][: more + named_in(pairs)] if talks else []
    return {
        "source": record["source"],
        "kind": kind,
        "split": record["split"],
        "image_id": record["image_id"],
        "sha256": record["sha256"],
        "more_sha256": [image.sha256 for image in further],
        "source_id": key,
        "turns": len(pairs),
        "text": _spoken(template, pairs, more) if talks else record["caption"],
        "input_ids": tokens.input_ids,
        "supervised": tokens.supervised,
        "pairs": pairs,
        "more": more,
        "further": further,
    }


def _turns(record: Row, most: int) -> tuple[int, list[Pair]]:
    """Return how many further images stand in front of a conversation, and its first turns."""
    texts = record["texts"]
    if record["more_images"]:
        more, pairs = placed_pairs(texts)
    else:
        more, pairs = 0, list(zip(texts[::2], texts[1::2], strict=True))
    return more, pairs[:most]


def _spoken(template: PromptTemplate, pairs: list[Pair], more: int) -> str:
    """Return a conversation as the model reads it, with a line break for each end of an answer."""
    said = "\n".join(f"{template.ask(question)} {answer}" for question, answer in pairs)
    return f"{MARKER} " * more + readable(said)


def _fit(
    template: PromptTemplate, pairs: list[Pair], more: int, limit: int
) -> tuple[list[Pair], Tokens]:
    """Return as many first turns as fit the limit, and their tokens; at least one is kept."""
    tokens = template.conversation(pairs, more)
    while len(tokens) > limit and len(pairs) > 1:
        pairs = pairs[:-1]
        tokens = template.conversation(pairs, more)
    return pairs, tokens


def _token_reason(tokens: Tokens | None, limit: int) -> str | None:
    if tokens is None or not any(tokens.supervised):
        return "no supervised token"
    return "too many tokens" if len(tokens) > limit else None


def _questions(rows: list[Row]) -> Iterator[Row]:
    for row in rows:
        if row["split"] == "train":
            continue
        for turn, (question, answer) in enumerate(row["pairs"]):
            shown = of_turn(row["further"], row["more"], row["pairs"], turn)
            yield {
                "example_id": row["example_id"],
                "source": row["source"],
                "split": row["split"],
                "image_id": row["image_id"],
                "sha256": row["sha256"],
                "more_sha256": [image.sha256 for image in shown],
                "turn": turn,
                "question": readable(question),
                "answer": answer,
            }


def _user_filtered(
    context: StageContext, examples: ExamplesPart, rows: list[Row], drops: list[Row]
) -> list[Row]:
    """Return the rows that the recipe's own filters keep, renumbered; the others become drops."""
    if not examples.filters:
        return rows
    images = {
        row["image_id"]: row
        for row in read_table(context.inputs["images"].path("images.parquet")).to_pylist()
    }
    near = _similarities(context)
    scores = _clip_scores(context)
    seen = (
        {
            **_visible(row, images.get(row["image_id"], {}), near.get(row["sha256"], {})),
            CLIP_SCORE: scores.get(row["source_id"]) if row["kind"] == "caption" else None,
        }
        for row in rows
    )
    reasons = apply_filters(examples.filters, list(seen))
    kept = []
    for number, row in enumerate(rows):
        if number in reasons:
            file = images.get(row["image_id"], {}).get("file_name", "")
            told = (row["kind"], row["source_id"], file, reasons[number], row["text"])
            drops.append(drop("examples", *told))
        else:
            kept.append({**row, "example_id": len(kept)})
    return kept


def _similarities(context: StageContext) -> dict[str, Row]:
    """Return how similar images are to others, by hash; empty where no filter asks for that."""
    if "features" not in context.inputs:
        return {}
    table = read_table(context.inputs["features"].path("nearest.parquet"))
    return {row["sha256"]: row for row in table.to_pylist()}


def _clip_scores(context: StageContext) -> dict[int, float]:
    """Return the scores of captions by id; empty where no filter asks for embeddings."""
    if "features" not in context.inputs:
        return {}
    table = read_table(context.inputs["features"].path("clip_scores.parquet"))
    ids = table["caption_id"].to_pylist()
    return dict(zip(ids, table["clip_score"].to_pylist(), strict=True))


def _visible(row: Row, image: Row, near: Row) -> Row:
    """Return the fields that a filter of the recipe may use."""
    shared = {name: row[name] for name in ("source", "kind", "split", "image_id", "text", "turns")}
    return {
        **shared,
        **{name: image.get(name) for name in ("file_name", "width", "height")},
        "characters": len(row["text"]),
        "tokens": len(row["input_ids"]),
        "questions": [readable(question) for question, _ in row["pairs"]],
        "answers": [answer for _, answer in row["pairs"]],
        **{name: near.get(name) for name in SIMILARITIES},
    }


def _kinds(context: StageContext) -> tuple[str, ...]:
    """Return the kinds of texts that the sources hold, captions if they hold none."""
    captions = read_table(context.inputs["images"].path("captions.parquet"), [])
    spoken = read_table(context.inputs["conversations"].path("conversations.parquet"), [])
    both = {"caption": len(captions) or not len(spoken), "conversation": len(spoken)}
    return tuple(kind for kind, count in both.items() if count)


def _summary(rows: list[Row], drops: list[Row]) -> Summary:
    counts = Counter(f"{row['split']}_{row['kind']}s" for row in rows)
    return {
        "examples": len(rows),
        **dict(sorted(counts.items())),
        "dropped": dict(sorted(Counter(row["reason"] for row in drops).items())),
    }
