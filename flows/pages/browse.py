"""The dataset on one page: images with their texts, what was left out, and distributions."""

from collections.abc import Collection, Sequence

from flows.example_scores import Row
from flows.pages.browse_records import image_records
from flows.pages.charts import Estimate, bars, histogram, stacked
from flows.pages.page import figure, own_script, render, thumbnail
from flows.pages.report import ask
from flows.pages.shown_images import images_of
from flows.pages.vega import Chart, chart_library
from pipeline.catalog.catalog import Catalog
from pipeline.data.quarantine import FILE
from pipeline.errors import PipelineError
from storage.tables import read_table

_DROPS = """
SELECT d.*, i.sha256, i.image_id FROM (
  SELECT *, row_number() OVER (PARTITION BY kind, reason ORDER BY record, file) AS place,
         count(*) OVER (PARTITION BY kind, reason) AS total
  FROM drops) d
LEFT JOIN (
  SELECT file_name, any_value(sha256) AS sha256, any_value(image_id) AS image_id
  FROM images GROUP BY ALL) i ON i.file_name = d.file
WHERE place <= $count ORDER BY total DESC, kind, reason, place
"""
_LEFT_OUT = "SELECT kind, reason, count(*) AS count FROM drops GROUP BY ALL ORDER BY ALL"
_SIZES = {
    "images": "SELECT split, count(*) AS n FROM images GROUP BY ALL",
    "captions": "SELECT split, count(*) AS n FROM examples WHERE kind = 'caption' GROUP BY ALL",
    "conversations": "SELECT split, count(*) AS n FROM examples WHERE kind = 'conversation' "
    "GROUP BY ALL",
    "questions": "SELECT split, count(*) AS n FROM questions GROUP BY ALL",
}
# Title → view, query of one column (with a name of each curve), unit.
_SPREADS = {
    "Words of a caption": (
        "captions",
        "SELECT '' AS name, len(string_split(trim(caption), ' ')) AS value FROM captions",
        "words",
    ),
    "Tokens of an example": (
        "examples",
        "SELECT kind AS name, len(input_ids) AS value FROM examples",
        "tokens",
    ),
    "Turns of a conversation": (
        "conversations",
        "SELECT '' AS name, len(turns) AS value FROM conversations",
        "turns",
    ),
    "Longer side of an image": (
        "images",
        "SELECT '' AS name, greatest(width, height) AS value FROM images",
        "pixels",
    ),
    "Width by height": (
        "images",
        "SELECT '' AS name, round(width / height, 2) AS value FROM images WHERE height > 0",
        "ratio",
    ),
    "Objects in an image": (
        "objects",
        "SELECT '' AS name, count(*) AS value FROM objects GROUP BY image_id",
        "objects",
    ),
}
# A million captions have some fifty different lengths.
_COUNTED = "SELECT name, value, count(*) AS n FROM ({}) GROUP BY ALL ORDER BY ALL"
_CATEGORIES = (
    "SELECT category, count(DISTINCT image_id) AS n FROM objects GROUP BY ALL "
    "ORDER BY n DESC, category LIMIT 20"
)


def write_browse(catalog: Catalog, images: int, drops: int) -> str:
    """Return the page of the dataset as one HTML text.

    Raises:
        PipelineError: The store holds no images yet.
    """
    if catalog.manifest("images") is None:
        raise PipelineError(f"{catalog.store.uri} holds no images yet", "`phivision run`")
    sizes = _sizes(catalog)
    left_out = ask(catalog, ("drops",), _LEFT_OUT)
    return render(
        "browse.html",
        [chart_library(), *(own_script(name) for name in ("charts.js", "browse.js"))],
        title="phivision dataset",
        store=catalog.store.uri,
        run=catalog.run or (catalog.runs[0]["run"] if catalog.runs else ""),
        tiles=[
            *((figure(sum(parts.values())), name) for name, parts in sizes.items()),
            (figure(sum(row["count"] for row in left_out)), "records left out"),
        ],
        charts=[*_size_charts(sizes), *_spread_charts(catalog)],
        drop_chart=_drop_chart(left_out) if left_out else None,
        drops=_drops(catalog, drops),
        records=image_records(catalog, images),
    )


def _sizes(catalog: Catalog) -> dict[str, dict[str, int]]:
    sizes: dict[str, dict[str, int]] = {}
    for name, sql in _SIZES.items():
        view = name if name == "questions" else "images" if name == "images" else "examples"
        rows = {row["split"]: row["n"] for row in ask(catalog, (view,), sql)}
        order = ("train", "validation", "test")
        sizes[name] = {split: rows[split] for split in order if split in rows}
    return {name: parts for name, parts in sizes.items() if parts}


def _size_charts(sizes: dict[str, dict[str, int]]) -> list[Chart]:
    return [stacked("Size of each split", sizes)] if sizes else []


def _spread_charts(catalog: Catalog) -> list[Chart]:
    charts = []
    for title, (view, sql, unit) in _SPREADS.items():
        counts: dict[str, dict[float, int]] = {}
        for row in ask(catalog, (view,), _COUNTED.format(sql)):
            counts.setdefault(row["name"], {})[row["value"]] = row["n"]
        if counts:
            charts.append(histogram(title, counts, unit))
    rows = ask(catalog, ("objects",), _CATEGORIES)
    if rows:
        named = [Estimate(row["category"], row["n"]) for row in rows]
        charts.append(bars("Images with a category", named, "images"))
    return charts


def _drop_chart(rows: Sequence[Row]) -> Chart:
    ordered = sorted(rows, key=lambda row: -row["count"])
    named = [Estimate(f"{row['kind']}: {row['reason']}", row["count"]) for row in ordered]
    return bars("Left out, by reason", named, "records")


def _drops(catalog: Catalog, count: int) -> dict[str, list[Row]]:
    rows = ask(catalog, ("drops", "images"), _DROPS, count=count)
    shown = images_of(catalog, [row["sha256"] for row in rows if row["sha256"]])
    unusable = {row["record"] for row in rows if row["kind"] == "image"}
    torn = _quarantined(catalog, unusable)
    groups: dict[str, list[Row]] = {}
    for row in rows:
        title = f"{row['kind']}: {row['reason']} ({row['total']:,})"
        image = torn.get((row["record"], row["file"])) or shown.get(row["sha256"] or "")
        groups.setdefault(title, []).append({**row, "image": image})
    return groups


def _quarantined(catalog: Catalog, records: Collection[str]) -> dict[tuple[str, str], str | None]:
    """Return the readable part of images that could not be used, by record and file."""
    manifest = catalog.manifest("images")
    paths = catalog.store.artifact(manifest).paths(FILE) if manifest else []
    return {
        (row["record"], row["file"]): thumbnail(row["data"], torn=True)
        for path in paths
        for row in read_table(path).to_pylist()
        if row["record"] in records
    }
