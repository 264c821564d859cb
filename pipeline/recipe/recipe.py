"""The Recipe: every choice that shapes an artifact, complete, frozen and validated.

Presets are full recipes; a change is a dotted override on one of them. There are no nested
defaults, so naming one field can never reset its siblings.
"""

import difflib
from collections.abc import Iterator, Mapping
from math import isqrt
from typing import Any, Self, get_args

from pydantic import Field, ValidationError, model_validator
from pydantic.fields import FieldInfo

from model.encoder_table import encoder_line, is_timm
from model.errors import ModelError
from pipeline.errors import RecipeError
from pipeline.recipe.backbone_parts import BackbonesChoice, TinyBackbones, positions_of
from pipeline.recipe.data_sources import has_captions
from pipeline.recipe.embedding_columns import CLIP_SCORE, mentions
from pipeline.recipe.fields import Part
from pipeline.recipe.named_entries import FIELDS, folded, kinds_of, parsed
from pipeline.recipe.parts import (
    ConversationsPart,
    EvaluatePart,
    ExamplesPart,
    FeaturesPart,
    FinetunePart,
    ImagesPart,
    PretrainPart,
    PublishPart,
)
from storage.errors import holds_credentials

_ANSWERS = "answer_accuracy"  # the main metric of models that learn from conversations only


class Recipe(Part):
    """All choices that are hashed; stages receive only the parts that they declare."""

    seed: int = Field(ge=0, description="Seed of every random choice.")
    images: ImagesPart
    conversations: ConversationsPart
    backbones: BackbonesChoice
    features: FeaturesPart
    examples: ExamplesPart
    pretrain: PretrainPart
    finetune: FinetunePart
    evaluate: EvaluatePart
    publish: PublishPart

    @model_validator(mode="after")
    def _tells_no_secret(self) -> Self:
        for field, value in self.leaves():
            texts = value if isinstance(value, list) else [value]
            if any(isinstance(text, str) and holds_credentials(text) for text in texts):
                raise ValueError(
                    f"{field} holds credentials, which manifests would expose; pass them in the "
                    "environment, e.g. AWS_ACCESS_KEY_ID, or in a file on this machine"
                )
        return self

    @model_validator(mode="after")
    def _rooms_fit(self) -> Self:
        self._encoders_fit()
        self.pretrain.projector.validate_against(self.features.patches)
        self._texts_fit()
        self._scores_are_made()
        if self.conversations.source.kind == "demo" and self.images.source.kind != "demo":
            raise ValueError(
                "conversations.source.kind=demo is about rendered images only: choose "
                "kind file or hub with images.source.kind=" + self.images.source.kind
            )
        self._texts_suffice()
        return self

    def _encoders_fit(self) -> None:
        """Refuse another number of patches, or a layer, than the encoders have."""
        features, shapes = self.features, encoder_shapes(self.backbones)
        joined = len(shapes) > 1
        if joined and isqrt(features.patches) ** 2 != features.patches:
            raise ValueError(
                f"two encoders are joined on a square grid, and features.patches="
                f"{features.patches} is no square: set {isqrt(features.patches) ** 2}, for example"
            )
        layers = (("layer", features.layer), ("second_layer", features.second_layer))
        for which, shape, (field, layer) in zip(("", "second "), shapes, layers, strict=False):
            if shape is None:
                continue
            if not joined and shape[0] != features.patches:
                raise ValueError(
                    f"the encoder gives {shape[0]} patches, features.patches says "
                    f"{features.patches}"
                )
            if -layer > shape[1]:
                raise ValueError(
                    f"the {which}encoder has {shape[1]} layers, features.{field} says {layer}"
                )

    def _scores_are_made(self) -> None:
        """Refuse a filter of scores that no stage computes, and scores no encoder can give."""
        wanted = self.features.clip_scores
        if mentions(self.examples.filters, CLIP_SCORE) and not wanted:
            raise ValueError(
                f"examples.filters mentions {CLIP_SCORE}: set features.clip_scores=true"
            )
        encoder = self.backbones
        if wanted and encoder.kind == "hub" and is_timm(encoder.clip_name):
            raise ValueError(
                f"{encoder.clip_name} has no text tower: set features.clip_scores=false"
            )

    def _texts_suffice(self) -> None:
        """Refuse choices that need conversations, or captions, where there are none."""
        captions = has_captions(self.images.source)
        if self.conversations.text_only == "keep" and self.finetune.caption_share == 1:
            raise ValueError(
                "conversations.text_only=keep has no effect with finetune.caption_share=1, which "
                "learns captions only: lower the one, or drop the other"
            )
        if self.conversations.source.kind != "none":
            if captions:
                return
            cause, share, metric = "images without captions leave conversations", 0.0, _ANSWERS
        elif captions:
            cause, share, metric = "conversations.source.kind=none leaves captions", 1.0, "cider_d"
        else:
            raise ValueError("images without captions need conversations about them")
        for field, value, needed in (
            ("finetune.caption_share", self.finetune.caption_share, share),
            ("publish.metric", self.publish.metric, metric),
        ):
            if value != needed:
                raise ValueError(f"{cause} only: set {field}={needed} (it is {value})")

    def _texts_fit(self) -> None:
        positions = positions_of(self.backbones)
        # The prefix ends with the separator; a question is no longer than an example.
        prefix = self.pretrain.projector.tokens_out(self.features.patches) + 1
        most = self.conversations.max_images
        needed = most * prefix + self.examples.max_tokens + self.evaluate.max_new_tokens
        if positions is not None and needed > positions:
            images = "the image" if most == 1 else f"each of {most} images"
            raise ValueError(
                f"the language model has {positions} positions: {prefix} of {images}, "
                f"examples.max_tokens={self.examples.max_tokens} and "
                f"evaluate.max_new_tokens={self.evaluate.max_new_tokens} need {needed}"
            )

    def override(self, changes: Mapping[str, object]) -> "Recipe":
        """Return this recipe with dotted paths replaced, validated as a whole.

        Changing the `kind` of a tagged value drops its old fields; the new kind's fields must
        then be given in the same call. Below a field of named entries, a path adds or replaces
        one of them: `examples.filters.NAME`, whose name may hold dots, or a field of one:
        `images.source.sources.NAME.root`.

        Args:
            changes: Values by dotted path, e.g. `{"finetune.epochs": 2}`. Text values are parsed
                as JSON if they are JSON (`"2"`, `"true"`, `"{…}"`) and the field accepts the
                result; otherwise they stay text.

        Raises:
            RecipeError: A path does not exist (the nearest valid one is named) or the result is
                not a valid recipe.
        """
        values = self.model_dump(mode="json")
        changes = folded(changes, values)
        kinds = [path for path in changes if path.endswith(".kind")]
        for path in [*kinds, *(path for path in changes if path not in kinds)]:
            field, name = self._entry(path)
            value = parsed(changes[path], _type_of(values, field, named=name is not None))
            if name is not None:
                value = _with_entry(values, field, name, value)
            _assign(values, field, value, fresh_kinds=kinds)
        try:
            return Recipe.model_validate(values)
        except ValidationError as error:
            raise RecipeError(_explain(error)) from None

    def _entry(self, path: str) -> tuple[str, str | None]:
        """Return a path's field and, if that field has named entries, the rest as a name."""
        node, steps = self, path.split(".")
        for depth, key in enumerate(steps[:-1], 1):
            known = isinstance(node, Part) and key in type(node).model_fields
            node = getattr(node, key) if known else None
            if isinstance(node, dict):
                return ".".join(steps[:depth]), ".".join(steps[depth:])
        return path, None

    def leaves(self) -> Iterator[tuple[str, object]]:
        """Yield every dotted path of this recipe with its value, in declaration order."""
        yield from flatten(self.model_dump(mode="json"))


def flatten(value: object, prefix: str = "") -> Iterator[tuple[str, object]]:
    """Yield `(dotted path, leaf)` of nested mappings; lists count as leaves."""
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from flatten(item, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value


def encoder_shapes(backbones: BackbonesChoice) -> list[tuple[int, int] | None]:
    """Return how many patches each encoder gives, and how many layers it has.

    None for one of timm, which needs torch: a recipe is checked without it, and the stage
    `features` checks the first images.
    """
    if isinstance(backbones, TinyBackbones):
        return [((backbones.image_size // backbones.patch_size) ** 2, backbones.clip_layers)]
    return [
        None if is_timm(encoder.name) else _shape(encoder.name) for encoder in backbones.encoders
    ]


def _shape(name: str) -> tuple[int, int]:
    line = encoder_line(name)
    return line.patches, line.layers


def _type_of(values: object, path: str, *, named: bool) -> Any:
    """Return the type of a field, or of one of its named entries; Any where there is no field."""
    kind: Any = Recipe
    for key in path.split("."):
        inside = values if isinstance(values, dict) else {}
        if isinstance(kind, dict):  # the class of each kind
            kind = kind.get(inside.get("kind"))
        field = getattr(kind, "model_fields", {}).get(key)
        if field is None:
            return Any
        kind, values = _below(field), inside.get(key)
    if isinstance(kind, dict):
        return Any
    return get_args(kind)[1] if named else kind


def _with_entry(values: dict[str, Any], field: str, name: str, value: object) -> object:
    """Return a field's entries with one more, or the other value an earlier change put there."""
    entries: Any = values
    for key in field.split("."):
        entries = entries.get(key, {})
    return {**entries, name: value} if isinstance(entries, dict) else entries


def _assign(values: dict[str, Any], path: str, value: object, *, fresh_kinds: list[str]) -> None:
    *parents, leaf = path.split(".")
    node = values
    for depth, key in enumerate(parents):
        inner = node.get(key) if isinstance(node, dict) else None
        if not isinstance(inner, dict):
            raise _unknown(path, _paths(values), ".".join(parents[: depth + 1]))
        node = inner
    if leaf == "kind" and node.get("kind") != value:
        node.clear()
    elif leaf not in node and ".".join([*parents, "kind"]) not in fresh_kinds:
        raise _unknown(path, _paths(values), path)
    node[leaf] = value


def _paths(values: dict[str, Any]) -> list[str]:
    return [path for path, _ in flatten(values)]


def _unknown(path: str, valid: list[str], missing: str) -> RecipeError:
    near = difflib.get_close_matches(path, valid, n=1, cutoff=0.4)
    by_leaf = [known for known in valid if known.rsplit(".", 1)[-1] == path.rsplit(".", 1)[-1]]
    hint = (by_leaf or near or [""])[0]
    return RecipeError(
        f"recipe has no field '{missing}'",
        f"did you mean '{hint}'?" if hint else "`phivision recipe` lists every field",
    )


def _explain(error: ValidationError) -> str:
    lines = []
    for item in error.errors():
        path, siblings = _place(item["loc"])
        place = path or "recipe"
        cause = item.get("ctx", {}).get("error")
        known = isinstance(cause, ModelError)
        message = cause.sentence if known else item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            lines.append(str(_unknown(place, siblings, place)))
        elif item["type"] == "missing":
            lines.append(f"{place} is required here: add --set {place}=…")
        elif isinstance(item["input"], Mapping):  # a whole part, whose fields do not fit
            lines.append(f"{place}: {message}")
        else:
            lines.append(f"{place}: {message} (got {str(item['input'])[:80]!r})")
    return "\n".join(dict.fromkeys(lines))


def _place(loc: tuple[int | str, ...]) -> tuple[str, list[str]]:
    """Return the dotted path of an error, and the paths that are valid beside it.

    Pydantic names the kind of a tagged value among the steps; a path does not.
    """
    steps: list[str] = []
    siblings: list[str] = []
    node: Any = Recipe
    for step in loc:
        if isinstance(node, dict):  # kinds of a tagged value
            node = node.get(step)
            continue
        fields = getattr(node, "model_fields", {})
        siblings = [".".join([*steps, name]) for name in fields]
        steps.append(str(step))
        if step in fields:
            node = _below(fields[step])
        else:
            above = ".".join(steps[:-1])
            node = kinds_of(above) if above in FIELDS else None
    return ".".join(steps), siblings


def _below(field: FieldInfo) -> Any:
    """Return a field's own class, or for a tagged value the class of each kind."""
    if field.discriminator is None:
        return field.annotation
    return {kind.model_fields["kind"].default: kind for kind in get_args(field.annotation)}
