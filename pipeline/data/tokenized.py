"""One filtered caption or conversation becomes an example, or a drop with its reason."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import chain
from typing import Any, NamedTuple

from model.prompt import MARKER, PromptTemplate, Tokens
from model.prompt_batches import BatchTemplate
from pipeline.data.further_images import Pair, named_in, placed_pairs, readable
from pipeline.data.known_tokens import Fitted, KnownTokens, key_of
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


class Said(NamedTuple):
    """What a caption or a conversation says.

    Attributes:
        key: See `pipeline.data.known_tokens`.
        caption: The caption; of a conversation "".
        pairs: The first turns of a conversation, as many as the recipe allows.
        more: Further images in front of it.
    """

    key: bytes
    caption: str
    pairs: list[Pair]
    more: int


def said_in(record: Row, examples: ExamplesPart) -> Said | None:
    """Return what a record says, None if it is to be dropped."""
    if record["reason"] is not None:
        return None
    if record["kind"] == "caption":
        caption = record["caption"]
        return Said(key_of(record["sha256"], [caption]), caption, [], 0)
    more, pairs = _turns(record, examples.max_turns)
    key = key_of(record["sha256"], [examples.max_tokens, more, *chain.from_iterable(pairs)])
    return Said(key, "", pairs, more)


def make_tokens(
    texts: Sequence[Said], batches: BatchTemplate, known: KnownTokens, limit: int
) -> dict[bytes, Fitted]:
    """Return the tokens of all texts by key; those that are not known are made together and kept.

    Args:
        texts: The texts.
        batches: Makes tokens.
        known: Finds and keeps them.
        limit: Tokens of a conversation, at most.
    """
    fitted = known.find([said.key for said in texts])
    left = [said for said in texts if said.key not in fitted]

    def make() -> dict[bytes, Fitted]:
        return {said.key: _fitted(said, batches.template, limit) for said in left}

    batches.prepare(make)
    made = make()
    known.keep(made)
    return fitted | made


def _fitted(said: Said, template: PromptTemplate, limit: int) -> Fitted:
    if not said.pairs:
        return Fitted(0, template.caption(said.caption))
    return Fitted(*template.fitting(said.pairs, limit, said.more))


def make_example(
    record: Row,
    said: Said | None,
    tokens: Mapping[bytes, Fitted],
    template: PromptTemplate,
    examples: ExamplesPart,
    names: Names,
    drops: list[Row],
) -> Row | None:
    """Return an example row, or None after adding the reason to `drops`."""
    kind, reason = record["kind"], record["reason"]
    key, talks = record[f"{kind}_id"], kind == "conversation"
    fitted = tokens[said.key] if said else None
    if fitted is not None:
        reason = _token_reason(fitted.tokens, examples.max_tokens)
    if reason is not None or fitted is None or said is None:
        text = record.get("caption") or str(record.get("texts", ""))
        file = (record["image_name"] if talks else names.files.get(record["image_id"])) or ""
        if hint := names.alikes.hint(file) if reason == "image missing" else "":
            text = f"{hint}; {text}"
        drops.append(drop("examples", kind, key, file, str(reason), text))
        return None
    pairs, more = said.pairs[: fitted.turns], said.more
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
        "input_ids": fitted.tokens.input_ids,
        "supervised": fitted.tokens.supervised,
        "key": said.key,
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


def _token_reason(tokens: Tokens, limit: int) -> str | None:
    if not any(tokens.supervised):
        return "no supervised token"
    return "too many tokens" if len(tokens) > limit else None
