"""One filtered caption or conversation becomes an example, or a drop with its reason."""

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

from model.prompt import MARKER, PromptTemplate, Tokens
from pipeline.data.further_images import Pair, named_in, of_turn, placed_pairs, readable
from pipeline.data.name_forms import Alikes
from pipeline.data.schemas import drop
from pipeline.engine.stage import InputArtifact
from pipeline.recipe.parts import ExamplesPart
from storage.tables import read_table, where

Row = dict[str, Any]


class Names:
    """File names of images, for what is told about texts that are dropped.

    Args:
        images: The `images` artifact.
    """

    def __init__(self, images: InputArtifact) -> None:
        self._images = images

    @cached_property
    def files(self) -> Mapping[int, str]:
        """The file name of every image by id, quarantined ones included."""
        lost = where(read_table(self._images.path("drops.parquet")), kind="image").to_pylist()
        names = {
            int(row["record"]): row["file"] for row in lost if row["record"].lstrip("-").isdecimal()
        }
        known = read_table(self._images.path("images.parquet"), ["image_id", "file_name"])
        ids, files = (known[name].to_pylist() for name in ("image_id", "file_name"))
        return names | dict(zip(ids, files, strict=True))

    @cached_property
    def alikes(self) -> Alikes:
        """Suggests names like one that is missing."""
        known = read_table(self._images.path("images.parquet"), ["file_name"])
        return Alikes(known["file_name"].to_pylist())


def ask_for_tokens(
    records: Sequence[Row], template: PromptTemplate, examples: ExamplesPart
) -> None:
    """Make the tokens of all examples, so that a template learns which texts they need."""
    for record in records:
        if record["reason"] is not None:
            continue
        if record["kind"] == "caption":
            template.caption(record["caption"])
        else:
            more, pairs = _turns(record, examples.max_turns)
            template.conversation(pairs, more)


def make_example(
    record: Row,
    template: PromptTemplate,
    examples: ExamplesPart,
    names: Names,
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
        file = (record["image_name"] if talks else names.files.get(record["image_id"])) or ""
        if hint := names.alikes.hint(file) if reason == "image missing" else "":
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


def questions_of(rows: Sequence[Row]) -> Iterator[Row]:
    """Yield the questions of held-out conversations, one for each turn."""
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
