"""The page of the explorer, in Gradio: filters, a gallery, and all there is about one image."""

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import gradio as gr
from PIL import Image

from flows.explore.images import StoredImages, marked, small
from flows.explore.queries import (
    ANY,
    Filters,
    KeptCatalog,
    choices,
    describe,
    find_images,
    hashes_of,
)
from flows.pages.page import MOST_PIXELS
from flows.similar_images import find_similar
from pipeline.catalog.catalog import Catalog
from pipeline.settings import Settings
from storage.errors import ExpectedError, StorageError

PAGE = 48  # images in the gallery at once
FEW_FILES = 4  # of images, read before anything is shown; each takes some 50 ms
SIMILAR = 6
ORDERS = ("as stored", "best first", "worst first")
KINDS = ("caption", "answer", "presence")
CSS = """
.gradio-container { max-width: none !important; }
.gradio-container > .main { width: 100%; max-width: 1280px !important; margin: 0 auto; }
#gallery .caption-label { font-size: .75rem; }
"""


class Explorer:
    """Answers the page's questions about one run.

    Args:
        catalog: The catalog of the run.
        settings: Settings of the command, which the search for similar images takes.
    """

    def __init__(self, catalog: Catalog, settings: Settings) -> None:
        self.catalog, self.settings = KeptCatalog(catalog.store, catalog.run), settings
        self.images = StoredImages(catalog)

    def find(self, start: int, *values: Any) -> Iterator[tuple[Any, ...]]:
        """Yield the gallery, what it shows in words, ids, the first one's number, and the SQL.

        Where the images lie in many files, the list comes first, with grey in their places.
        """
        *before, least, most, order = values
        filters = Filters(*before, _number(least), _number(most), order)
        try:
            rows, total, sql = find_images(self.catalog, filters, start, PAGE)
        except StorageError as error:
            raise gr.Error(str(error), title="Not found", print_exception=False) from None
        last = start + len(rows)
        position = f"{start + 1:,} to {last:,} of {total:,} images" if rows else "no image matches"
        ids, labels = [row["image_id"] for row in rows], [_label(row) for row in rows]
        buttons = gr.Button(interactive=start > 0), gr.Button(interactive=last < total)
        listed = (position, ids, start, sql, *buttons)
        wanted = [row["sha256"] for row in rows]
        if len(self.images.files(wanted)) > FEW_FILES:
            yield [(self._small(None), label) for label in labels], *listed
        stored = self.images.read(wanted)
        with ThreadPoolExecutor() as threads:  # JPEGs are decoded beside each other
            drawn = threads.map(self._small, map(stored.get, wanted))
            shown = list(zip(drawn, labels, strict=True))
        yield shown, *listed

    def look(self, image_id: int) -> tuple[Any, ...]:
        """Return the image with its boxes, its texts, what was said, drops, similar ones, SQL."""
        details = describe(self.catalog, image_id)
        row = details.row
        data = self.images.read([row["sha256"]]).get(row["sha256"])
        drawn = marked(data, MOST_PIXELS, details.objects) if data else None
        head = f"{row['file_name']} · {row['split']} · {row['width']} x {row['height']} pixels"
        predictions = [
            [
                *(row["stage"], row["condition"], row["kind"], row["question"] or ""),
                *(row["prediction"], " | ".join(row["references"] or []), row["score"]),
            ]
            for row in details.predictions
        ]
        drops = [[row["kind"], row["reason"], row["detail"]] for row in details.drops]
        near, ids = self._similar(image_id)
        texts = "\n\n".join(details.texts) or "no text is about it"
        return head, drawn, texts, predictions, drops, near, ids, details.sql

    def _similar(self, image_id: int) -> tuple[list[tuple[Image.Image, str]], list[int]]:
        try:
            rows = find_similar(self.catalog, str(image_id), SIMILAR, self.settings)
        except ExpectedError:  # the run has no embeddings yet
            return [], []
        by_id = {row["image_id"]: row for row in rows}
        stored = hashes_of(self.catalog, by_id)
        read = self.images.read(list(stored.values()))
        shown = [
            (self._small(read.get(stored[key])), f"{row['similarity']:.3f} · {row['split']}")
            for key, row in by_id.items()
        ]
        return shown, list(by_id)

    def _small(self, data: bytes | None) -> Image.Image:
        reduced = small(data, MOST_PIXELS) if data else None
        return reduced or Image.new("RGB", (64, 64), "#888888")


def _number(text: str) -> float | None:
    if not text.strip():
        return None
    try:
        return float(text.replace(",", "."))
    except ValueError:
        raise gr.Error(
            f"{text} is not a number", title="Not found", print_exception=False
        ) from None


def _label(row: dict[str, Any]) -> str:
    score = "" if row["score"] is None else f" · {row['score']:.2f}"
    return f"{row['split']}{score}"


def build_page(explorer: Explorer, title: str) -> gr.Blocks:
    """Return the page."""
    known = choices(explorer.catalog)
    with gr.Blocks(title=title, analytics_enabled=False) as page:
        gr.Markdown(f"# {title}")
        filters = _filters(known)
        with gr.Row():
            find = gr.Button("Find", variant="primary", elem_id="find")
            back = gr.Button("Previous", elem_id="back", interactive=False)
            on = gr.Button("Next", elem_id="next", interactive=False)
        position = gr.Textbox(show_label=False, container=False, interactive=False, elem_id="told")
        gallery = gr.Gallery(
            columns=8,
            height="auto",
            object_fit="contain",
            allow_preview=False,
            show_label=False,
            elem_id="gallery",
            buttons=[],
            format="jpeg",
        )
        with gr.Accordion("SQL of this list", open=False):
            sql = gr.Code(language="sql", interactive=False, show_label=False, elem_id="sql")
        ids, start = gr.State([]), gr.State(0)
        listed = [gallery, position, ids, start, sql, back, on]
        near_ids = gr.State([])
        *shown, rows = _details()
        looked = [*shown, near_ids, rows]
        _connect(explorer, page, filters, (find, back, on), (ids, start), gallery, listed, looked)
    return page


def _filters(known: Mapping[str, list[str]]) -> list[Any]:
    """Return the inputs in the order of the fields of `Filters`."""

    def choice(label: str, name: str) -> gr.Dropdown:
        return gr.Dropdown([ANY, *known[name]], value=ANY, label=label, elem_id=name)

    with gr.Row():
        text = gr.Textbox(
            label="Text", placeholder="in captions, talk, predictions", elem_id="text"
        )
        split, source = choice("Split", "split"), choice("Source", "source")
        category = choice("Object", "category")
        reason = choice("Left out because", "reason")
    with gr.Row():
        kind = gr.Dropdown(list(KINDS), value=KINDS[0], label="Predictions", elem_id="kind")
        conditions = known["condition"] or ["real"]
        first = "real" if "real" in conditions else conditions[0]
        condition = gr.Dropdown(conditions, value=first, label="Condition", elem_id="condition")
        least = gr.Textbox(label="Lowest score", placeholder=ANY, elem_id="least")
        most = gr.Textbox(label="Highest score", placeholder=ANY, elem_id="most")
        order = gr.Dropdown(list(ORDERS), value=ORDERS[0], label="Order", elem_id="order")
    return [text, split, source, category, reason, kind, condition, least, most, order]


def _details() -> list[Any]:
    with gr.Group(elem_id="detail"):
        head = gr.Textbox(label="Image", interactive=False, elem_id="head")
        with gr.Row():
            drawn = gr.Image(
                label="With marked objects", interactive=False, buttons=[], elem_id="drawn"
            )
            texts = gr.Textbox(label="Texts", lines=12, interactive=False, elem_id="texts")
        predictions = gr.Dataframe(
            headers=["stage", "condition", "kind", "question", "prediction", "references", "score"],
            label="Predictions",
            column_widths=[90, 110, 90, 200, 260, 300, 70],
            interactive=False,
            wrap=True,
            elem_id="predictions",
        )
        drops = gr.Dataframe(
            headers=["kind", "reason", "detail"],
            label="Left out",
            interactive=False,
            wrap=True,
            elem_id="drops",
        )
        near = gr.Gallery(
            label="Similar images",
            columns=SIMILAR,
            height="auto",
            allow_preview=False,
            elem_id="near",
            buttons=[],
            format="jpeg",
        )
        sql = gr.Code(language="sql", label="SQL of these rows", interactive=False, elem_id="rows")
    return [head, drawn, texts, predictions, drops, near, sql]


def _connect(
    explorer: Explorer,
    page: gr.Blocks,
    filters: list[Any],
    buttons: tuple[Any, Any, Any],
    states: tuple[Any, Any],
    gallery: gr.Gallery,
    listed: list[Any],
    looked: list[Any],
) -> None:
    """Let the parts of the page answer each other."""
    find, back, on = buttons
    ids, start = states
    near, near_ids = looked[5], looked[6]

    def first(*values: Any) -> Iterator[tuple[Any, ...]]:
        yield from explorer.find(0, *values)

    def before(at: int, *values: Any) -> Iterator[tuple[Any, ...]]:
        yield from explorer.find(max(0, at - PAGE), *values)

    def after(at: int, *values: Any) -> Iterator[tuple[Any, ...]]:
        yield from explorer.find(at + PAGE, *values)

    def look(chosen: gr.SelectData, listed: list[int]) -> tuple[Any, ...]:
        return explorer.look(listed[chosen.index])

    shared: dict[str, Any] = {"api_visibility": "private", "show_progress": "minimal"}
    page.load(first, filters, listed, **shared)
    gr.on([find.click, filters[0].submit], first, filters, listed, **shared)
    back.click(before, [start, *filters], listed, **shared)
    on.click(after, [start, *filters], listed, **shared)
    gallery.select(look, [ids], looked, **shared)
    near.select(look, [near_ids], looked, **shared)
