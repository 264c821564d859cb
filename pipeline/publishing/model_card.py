"""The model card of a bundle: what it is, how well it does, and how to use it."""

from typing import Any

from pipeline.data.schemas import BASELINES, CONDITIONS
from pipeline.evaluation.shown_metrics import SHOWN_METRICS
from pipeline.publishing.templates import TEMPLATES

Row = dict[str, Any]

_CARD = """\
---
library_name: phivision
tags: [vision-language, image-captioning, visual-question-answering]
---
# {{ name }}

{% if joined %}
A small vision-language assistant made with phivision: a projector hands what two frozen encoders
see in an image, joined by position, to a language model, which was finetuned to speak about images.
{% else %}
A small vision-language assistant made with phivision: a projector hands what a frozen encoder sees
in an image to a language model, which was finetuned to speak about images.
{% endif %}

| part | what |
|---|---|
{% for part, what in parts %}
| {{ part }} | {{ what }} |
{% endfor %}

{% if trained_on %}
## What it was made for

{{ trained_on.sentence }} It can be expected to do as well as below on images like them.
{% if trained_on.least_similarity is defined %}
An image that is farther from all of them than they are from each other is answered, too, with a
warning that the answer may be a guess: its greatest cosine similarity to
{{ "{:,}".format(trained_on.compared) }} training images is below
{{ "%.4f"|format(trained_on.least_similarity) }}, the 1st percentile of their own.
{% else %}
Of other images nothing warns: there were too few to compare with.
{% endif %}
{% if text_only %}
It was also trained on texts alone, so it answers questions without an image, too.
{% endif %}

{% endif %}
## Scores on held-out images

Same weights, three conditions: the real image, another image, and no image. A model that
does not look scores the same in all three.

| metric | real | shuffled | blind |
|---|--:|--:|--:|
{% for line in scores %}
{{ line }}
{% endfor %}

Brackets are 95 % bootstrap intervals over images.
{%- if images %} CIDEr-D takes its word weights
from the evaluated references, here {{ images }} images, so compare it within this card only.
{%- endif %}


{% if drawn %}
Captions are those of `phivision caption`: {{ drawn }} are drawn beside the likeliest one, and
the one is taken on which captions of similar training images agree; `consensus.json` has these.
The chat, the server and other formats write the likeliest one, which `greedy_cider_d` scores.

{% endif %}
{% if gaps %}
## What the image is worth

By how much the real image is better than what a column names, over the same images. Above 0
speaks for the image, also where less of a metric is better; an interval above 0 shows that the
image is used. Columns from the third on are captions that no language model wrote: the commonest
training caption, {{ "" if drawn else "and " }}one of the most similar training image
{%- if drawn %}, and of the captions of similar
training images the one that agrees most with the others{% endif %}.

| metric | {{ against|join(" | ")|replace("_", " ") }} |
|---|{{ "--:|" * against|length }}
{% for line in gaps %}
{{ line }}
{% endfor %}

{% endif %}
## Use

```
phivision ask PHOTO.jpg "What is in the image?"
```

{% if joined %}
`second/` is the second encoder, a folder like `clip/`.
{% endif %}
`bundle.json` describes the parts: `clip/` is an open_clip folder, `lm/` a Hugging Face folder,
`vision_prefix.safetensors` the projector with its separator. No part is code or a pickle.

## Limits

The model repeats what its training data holds, errors and biases included. It is small and can be
confidently wrong. The licences of the data and of the backbones apply to it.
"""


def model_card(card: dict[str, Any]) -> str:
    """Return a bundle's card as Markdown."""
    values = {(row["metric"], row["condition"]): row for row in card["metrics"]}
    drawn = card.get("caption_samples", 0)
    against = CONDITIONS[1:] + BASELINES[: None if drawn else -1]
    return TEMPLATES.from_string(_CARD).render(
        name=card["name"],
        parts=card["parts"].items(),
        joined="second_layer" in card,
        trained_on=card.get("trained_on"),
        text_only=card.get("text_only", False),
        drawn=drawn,
        scores=_table(values, CONDITIONS),
        against=against,
        gaps=_table(values, against, "_gap", "+.3f"),
        images=values["cider_d", "real"]["count"] if ("cider_d", "real") in values else 0,
    )


def _table(
    values: dict[tuple[str, str], Row],
    columns: tuple[str, ...],
    suffix: str = "",
    style: str = ".3f",
) -> list[str]:
    """Return a line for each metric that has a value in one of the columns."""
    lines = []
    for metric in (name for name, shown in SHOWN_METRICS.items() if shown.card):
        cells = [_cell(values.get((f"{metric}{suffix}", column)), style) for column in columns]
        if any(cells):
            lines.append(f"| `{metric}` | {' | '.join(cells)} |")
    return lines


def _cell(row: Row | None, style: str) -> str:
    if row is None:
        return ""
    text = f"{row['value']:{style}}"
    return text if row["low"] is None else f"{text} [{row['low']:{style}}, {row['high']:{style}}]"
