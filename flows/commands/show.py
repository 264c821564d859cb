"""`phivision show`: one image's way through the DAG, on one screen."""

import io
from typing import Any

from PIL import Image
from rich.console import Console
from rich.text import Text

from flows.printing import table_of
from model.decoding import QUIET
from pipeline.catalog.catalog import Catalog
from pipeline.errors import PipelineError
from storage.sql.queries import Database

_SECTIONS = (
    ("captions", "SELECT caption_id, caption FROM captions WHERE image_id = $id ORDER BY 1"),
    ("objects", "SELECT category, x, y, width, height FROM objects WHERE image_id = $id"),
    (
        "features",
        "SELECT shard, row, round(patch_norm::DOUBLE, 3) AS patch_norm FROM features "
        "WHERE sha256 = $sha",
    ),
    (
        "examples",
        "SELECT example_id, kind, turns, len(input_ids) AS tokens, "
        "replace(text, chr(10), ' ↵ ') AS text FROM examples WHERE image_id = $id ORDER BY 1",
    ),
    (
        "drops",
        "SELECT kind, record, reason, detail FROM drops "
        "WHERE file IN ($id::VARCHAR, $file) ORDER BY ALL",
    ),
    (
        "predictions",
        "SELECT stage, condition, kind, question, prediction, round(score, 3) AS score "
        "FROM predictions WHERE image_id = $id "
        "ORDER BY condition <> 'real', kind <> 'caption', kind, stage, condition DESC, question",
    ),
)
_CAPTION = (
    "SELECT prediction FROM predictions WHERE image_id = $id AND stage = 'finetune' "
    "AND condition = 'real' AND kind = 'caption'"
)


def show_image(catalog: Catalog, image_id: int | None) -> None:
    """Print an image, its texts, features, examples, drops and what the model said about it.

    Raises:
        PipelineError: The catalog has no such image.
    """
    console = Console()
    if catalog.manifest("images") is None:
        raise PipelineError(f"{catalog.store.uri} holds no images yet", "`phivision run`")
    with catalog.open(names=("images", "files", *(name for name, _ in _SECTIONS))) as database:
        if image_id is None:
            image_id = _held_out(database)
        matches = _query(database, "SELECT * FROM images WHERE image_id = $id", {"id": image_id})
        if not matches:
            raise _missing(database, image_id)
        row = matches[0]
        keys = {"id": image_id, "sha": row["sha256"], "file": row["file_name"]}
        data = _query(database, "SELECT data FROM files WHERE sha256 = $sha", keys)[0]["data"]
        if console.is_terminal:
            console.print(image_text(data, 48))
        console.print(
            f"image {image_id} · {row['file_name']} · {row['width']}x{row['height']} · "
            f"{row['split']} · sha256 {row['sha256'][:16]}",
            markup=False,
        )
        if "predictions" in database.names:
            for said in _query(database, _CAPTION, keys):
                console.print(f"the model's caption: {said['prediction']}", markup=False)
        for name, sql in _SECTIONS:
            if name in database.names:
                _section(console, name, _query(database, sql, keys))


def _missing(database: Database, image_id: int) -> PipelineError:
    """Return why there is no such image: it was left out, or is not in the data."""
    sql = "SELECT file, reason, detail FROM drops WHERE kind = 'image' AND record = $id"
    for left in _query(database, sql, {"id": str(image_id)}) if "drops" in database.names else ():
        reason = f"{left['reason']}{', ' if left['detail'] else ''}{left['detail']}"
        return PipelineError(
            f"image {image_id} was left out: {reason}", f"fix {left['file']} at its source"
        )
    return PipelineError(
        f"there is no image {image_id}",
        'phivision sql "SELECT image_id FROM images LIMIT 5" names some',
    )


def image_text(data: bytes, width: int) -> Text:
    """Return an image as coloured half blocks, two pixels high per line of text."""
    with QUIET:
        image = Image.open(io.BytesIO(data)).convert("RGB")
    height = max(2, round(image.height * width / image.width / 2) * 2)
    image = image.resize((width, height))
    pixels = image.load()
    assert pixels is not None
    text = Text()
    for y in range(0, height, 2):
        for x in range(width):
            above, below = pixels[x, y], pixels[x, y + 1]
            text.append(
                "▀", style=f"rgb{above} on rgb{below}".replace(" ", "").replace("on", " on ")
            )
        text.append("\n")
    return text


def _held_out(database: Database) -> int:
    sql = "SELECT max(image_id) AS id FROM images WHERE split = 'test'"
    if "predictions" in database.names:
        sql = "SELECT max(image_id) AS id FROM predictions"
    return _query(database, sql, {})[0]["id"]


def _query(database: Database, sql: str, keys: dict[str, Any]) -> list[dict[str, Any]]:
    used = {name: value for name, value in keys.items() if f"${name}" in sql}
    return database.query(sql, used).to_pylist()


def _section(console: Console, name: str, rows: list[dict[str, Any]]) -> None:
    console.print(f"\n[bold]{name}[/bold] ({len(rows)})")
    if rows:
        # A column that is empty in all rows tells nothing.
        columns = [key for key in rows[0] if any(row[key] not in ("", None) for row in rows)]
        console.print(table_of(columns, [[row[key] for key in columns] for row in rows[:12]]))
    if len(rows) > 12:
        console.print(f"  … {len(rows) - 12} more")
