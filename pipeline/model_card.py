"""The model card of a bundle: what it is, how well it does, and how to use it."""

from typing import Any

_SHOWN = ("cider_d", "bleu_4", "rouge_l", "answer_accuracy", "eos_rate", "nll")

_CARD = """---
library_name: phivision
tags: [vision-language, image-captioning, visual-question-answering]
---
# {name}

A small vision-language assistant made with phivision: a frozen CLIP, a projector and a Phi
language model that was finetuned on visual conversations.

## Scores on held-out pictures

Same weights, three conditions: the real picture, another picture, and no picture. A model that
does not look scores the same in all three.

| metric | real | shuffled | blind |
|---|--:|--:|--:|
{table}

Brackets are 95 % bootstrap intervals over pictures or questions. CIDEr-D takes its word weights
from the evaluated references, here {images} pictures, so compare it within this card only.

## Use

```
phivision ask PHOTO.jpg "What is in the picture?"
```

`bundle.json` describes the parts: `clip/` is an open_clip folder, `lm/` a Hugging Face folder,
`vision_prefix.safetensors` the projector with its separator. No part is code or a pickle.

## Limits

The model repeats what its training data holds, errors and biases included. It is small and can be
confidently wrong. The licences of the data and of the backbones apply to it.
"""


def model_card(card: dict[str, Any]) -> str:
    """Return a bundle's card as Markdown."""
    values = {(row["metric"], row["condition"]): row for row in card["metrics"]}
    lines = []
    for metric in _SHOWN:
        cells = [_cell(values.get((metric, shown))) for shown in ("real", "shuffled", "blind")]
        if any(cells):
            lines.append(f"| `{metric}` | {' | '.join(cells)} |")
    images = values["cider_d", "real"]["count"]
    return _CARD.format(name=card["name"], table="\n".join(lines), images=images)


def _cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return ""
    text = f"{row['value']:.3f}"
    return f"{text} [{row['low']:.3f}, {row['high']:.3f}]" if row["low"] is not None else text
