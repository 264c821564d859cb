"""The part of a report that shows where the model looked for the words that it wrote."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from flows.overlay import overlay
from flows.pages.page import MOST_PIXELS, jpeg_uri
from flows.pages.shown_images import contents_of
from model.decoding import BadImageError, decode_image
from model.patch_grid import View, place
from pipeline.catalog.catalog import Catalog

Row = dict[str, Any]
EXAMPLES = 20  # texts shown
_WORDS = 3  # of a text, those for which a patch mattered most
_SIDE = 144  # pixels of an overlay's longer side
_SQL = (
    "SELECT p.prediction_id, p.image_id, p.sha256, p.kind, p.question, p.prediction, i.number, "
    "i.word, i.importance, i.view_left, i.view_top, i.view_width, i.view_height "
    "FROM importance i JOIN predictions p ON p.prediction_id = i.prediction_id "
    "WHERE i.condition = 'real' ORDER BY p.image_id, p.kind DESC, p.prediction_id, i.number"
)


def looked(catalog: Catalog, count: int = EXAMPLES) -> list[dict[str, Any]]:
    """Return texts about held-out images, each with overlays for its most image-dependent words.

    There is one text for each image, captions and answers in turn where there are both.
    """
    with catalog.open(names=("importance", "predictions")) as database:
        if not {"importance", "predictions"} <= set(database.names) or not count:
            return []
        rows = database.query(_SQL, {}).to_pylist()
    texts = list(_chosen(rows, count))
    files = dict(contents_of(catalog, {words[0]["sha256"] for words in texts}))
    return [_card(words, files.get(words[0]["sha256"])) for words in texts]


def _chosen(rows: Sequence[Row], count: int) -> Iterator[list[Row]]:
    """Yield the words of one text for each of some images, spread over all."""
    images: dict[int, dict[int, list[Row]]] = {}
    for row in rows:
        images.setdefault(row["image_id"], {}).setdefault(row["prediction_id"], []).append(row)
    step = max(1, len(images) // max(1, count))
    for turn, texts in enumerate(list(images.values())[::step][:count]):
        kinds = [words for words in texts.values() if words[0]["kind"] != "caption"]
        others = [words for words in texts.values() if words[0]["kind"] == "caption"]
        first, second = (others, kinds) if turn % 2 == 0 else (kinds, others)
        yield (first or second)[0]


def _card(words: Sequence[Row], data: bytes | None) -> dict[str, Any]:
    first = words[0]
    strongest = sorted(words, key=lambda row: -max(row["importance"]))[:_WORDS]
    shown = []
    try:
        image = None if data is None else decode_image(data, MOST_PIXELS)
    except BadImageError:
        image = None
    for row in sorted(strongest, key=lambda row: row["number"]):
        values = np.array(row["importance"], np.float32)
        view = View(*(row[f"view_{side}"] for side in ("left", "top", "width", "height")))
        shown.append(
            {
                "word": row["word"],
                "place": place(values) if values.max() > 0 else "no patch mattered",
                "nats": max(float(values.max()), 0.0),
                "uri": None if image is None else jpeg_uri(overlay(image, view, values, _SIDE)),
            }
        )
    return {
        "image_id": first["image_id"],
        "question": first["question"],
        "prediction": first["prediction"],
        "words": shown,
    }
