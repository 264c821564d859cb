"""What the explorer asks the catalog: images that match filters, and all there is about one."""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa

from pipeline.catalog.catalog import Catalog
from storage.sql.queries import Source
from storage.store.artifacts import ArtifactStore

Row = dict[str, Any]
Order = Literal["as stored", "best first", "worst first"]

ANY = "any"  # of a filter that is not set
# Views that are opened; a run that was not evaluated has fewer.
VIEWS = ("images", "captions", "objects", "examples", "drops", "predictions")
_ORDERS = {"as stored": "i.place", "best first": "s.score DESC", "worst first": "s.score"}
_LISTED = """\
SELECT i.image_id, i.sha256, i.file_name, i.split, {score}
FROM (SELECT *, row_number() OVER () AS place FROM images) i{joined}{conditions}
ORDER BY {order}, i.image_id"""
_JOINED = """
{kept} (
  SELECT image_id, avg(score) AS score FROM predictions
  WHERE stage = 'finetune' AND kind = $kind AND condition = $condition AND score IS NOT NULL
  GROUP BY image_id
) s USING (image_id)"""
_COUNT = "SELECT count(*) AS n FROM ({})"
_TEXTS = (
    ("captions", "caption"),
    ("examples", "text"),
    ("predictions", "prediction"),
)
_CHOICES = {
    "split": ("images", "SELECT DISTINCT split FROM images ORDER BY 1"),
    "source": ("images", "SELECT DISTINCT source FROM images ORDER BY 1"),
    "category": ("objects", "SELECT DISTINCT category FROM objects ORDER BY 1"),
    "reason": (
        "drops",
        "SELECT DISTINCT reason FROM drops JOIN images ON file_name = file ORDER BY 1",
    ),
    "condition": ("predictions", "SELECT DISTINCT condition FROM predictions ORDER BY 1"),
}


class KeptCatalog(Catalog):
    """A catalog that computes its joined tables once: the artifacts of a run do not change."""

    def __init__(self, store: ArtifactStore, run: str | None = None) -> None:
        super().__init__(store, run)
        self._tables: dict[str, pa.Table] = {}

    def source(self, name: str) -> Source | None:
        """Return the rows of a view; tables are kept in memory, files stay files."""
        if name in self._tables:
            return self._tables[name]
        source = super().source(name)
        if isinstance(source, pa.Table):
            self._tables[name] = source
        return source


@dataclass(frozen=True)
class Filters:
    """Which images are shown; `ANY` and "" do not limit.

    Attributes:
        text: In a caption, a conversation or a prediction, in any case.
        split: train, validation or test.
        source: Name of a source.
        category: Of a marked object.
        reason: Why a text about the image was left out.
        kind: Of the predictions that are scored: caption, answer or presence.
        condition: Of these predictions.
        least: Their lowest mean score.
        most: Their highest mean score.
        order: Order of the images; by score only those with predictions are shown.
    """

    text: str = ""
    split: str = ANY
    source: str = ANY
    category: str = ANY
    reason: str = ANY
    kind: str = "caption"
    condition: str = "real"
    least: float | None = None
    most: float | None = None
    order: Order = "as stored"

    @property
    def scored(self) -> bool:
        """Whether only images with predictions are shown."""
        return self.order != "as stored" or self.least is not None or self.most is not None


def matching(filters: Filters, views: Collection[str]) -> tuple[str, dict[str, Any]]:
    """Return the SQL of the images that match, and its parameters.

    Args:
        filters: Which images.
        views: Views that have rows; filters on others match nothing.
    """
    where: list[str] = []
    values: dict[str, Any] = {}
    for column in ("split", "source"):
        if (value := getattr(filters, column)) != ANY:
            where.append(f"i.{column} = ${column}")
            values[column] = value
    if filters.text.strip():
        values["text"] = filters.text.strip().lower()
        matches = " UNION ".join(
            f"SELECT image_id FROM {view} WHERE contains(lower({column}), $text)"  # noqa: S608
            for view, column in _TEXTS
            if view in views
        )
        where.append(f"i.image_id IN ({matches})")
    if filters.category != ANY:
        values["category"] = filters.category
        where.append("i.image_id IN (SELECT image_id FROM objects WHERE category = $category)")
    if filters.reason != ANY:
        values["reason"] = filters.reason
        where.append("i.file_name IN (SELECT file FROM drops WHERE reason = $reason)")
    joined = _scored(filters, where, values) if "predictions" in views else ""
    if filters.scored and not joined:
        where.append("false")  # nothing was predicted
    conditions = f"\nWHERE {' AND '.join(where)}" if where else ""
    score = "s.score" if joined else "NULL::DOUBLE AS score"
    order = _ORDERS[filters.order] if joined else "i.place"
    return _LISTED.format(score=score, joined=joined, conditions=conditions, order=order), values


def _scored(filters: Filters, where: list[str], values: dict[str, Any]) -> str:
    """Return the join with the scores of predictions, and add its conditions."""
    values |= {"kind": filters.kind, "condition": filters.condition}
    for name, sign in (("least", ">="), ("most", "<=")):
        if (value := getattr(filters, name)) is not None:
            where.append(f"s.score {sign} ${name}")
            values[name] = value
    kept = "JOIN" if filters.scored else "LEFT JOIN"
    return _JOINED.format(kept=kept)


def hashes_of(catalog: Catalog, image_ids: Collection[int]) -> dict[int, str]:
    """Return the hashes of images by id."""
    sql = "SELECT image_id, sha256 FROM images WHERE image_id IN (SELECT unnest($ids::BIGINT[]))"
    with catalog.open(names=("images",)) as database:
        rows = database.query(sql, {"ids": list(image_ids)}).to_pylist()
    return {row["image_id"]: row["sha256"] for row in rows}


def find_images(
    catalog: Catalog, filters: Filters, start: int, count: int
) -> tuple[list[Row], int, str]:
    """Return some of the images that match, how many match in all, and the SQL."""
    with catalog.open(names=VIEWS) as database:
        sql, values = matching(filters, database.names)
        page = {**values, "start": start, "count": count}
        counted = sql.replace("SELECT ", "SELECT count(*) OVER () AS total, ", 1)  # in one pass
        rows = database.query(f"{counted}\nLIMIT $count OFFSET $start", page).to_pylist()
        totals = {row.pop("total") for row in rows}
        if not totals and start:  # behind the last page
            totals = {database.query(_COUNT.format(sql), values)["n"][0].as_py()}
    return rows, max(totals, default=0), _filled(sql, values)


def choices(catalog: Catalog) -> dict[str, list[str]]:
    """Return the values that filters offer, by filter."""
    options = {}
    with catalog.open(names=VIEWS) as database:
        for name, (view, sql) in _CHOICES.items():
            known = {"images", view} <= set(database.names)
            column = database.query(sql).column(0).to_pylist() if known else []
            options[name] = [str(value) for value in column if value is not None]
    return options


@dataclass(frozen=True)
class Detail:
    """All there is about one image.

    Attributes:
        row: Its row of `images`.
        texts: Captions and conversations, one text each.
        objects: Rows of `objects`.
        drops: Kind, reason and detail of texts about it that were left out.
        predictions: What models wrote, with references and scores.
        sql: Statements that give these rows.
    """

    row: Row
    texts: list[str]
    objects: list[Row]
    drops: list[Row]
    predictions: list[Row]
    sql: str


_DETAILS: Mapping[str, str] = {
    "images": "SELECT * FROM images WHERE image_id = $id",
    "captions": "SELECT caption FROM captions WHERE image_id = $id ORDER BY caption_id",
    "examples": "SELECT text FROM examples WHERE image_id = $id AND kind = 'conversation'",
    "objects": "SELECT category, x, y, width, height FROM objects WHERE image_id = $id",
    "drops": "SELECT kind, reason, detail FROM drops WHERE file = "
    "(SELECT file_name FROM images WHERE image_id = $id)",
    "predictions": 'SELECT stage, condition, kind, question, prediction, "references", score '
    "FROM predictions WHERE image_id = $id ORDER BY stage, kind, question, condition",
}


def describe(catalog: Catalog, image_id: int) -> Detail:
    """Return all there is about an image of the catalog."""
    rows: dict[str, list[Row]] = {}
    with catalog.open(names=VIEWS) as database:
        for view, sql in _DETAILS.items():
            known = {"images", view} <= set(database.names)
            rows[view] = database.query(sql, {"id": image_id}).to_pylist() if known else []
    texts = [row["caption"] for row in rows["captions"]]
    return Detail(
        rows["images"][0],
        texts + [row["text"] for row in rows["examples"]],
        rows["objects"],
        rows["drops"],
        rows["predictions"],
        "\n".join(f"{_filled(sql, {'id': image_id})};" for sql in _DETAILS.values()),
    )


def _filled(sql: str, values: Mapping[str, Any]) -> str:
    """Return SQL with its values, which `phivision sql` takes."""
    return re.sub(r"\$(\w+)", lambda match: _literal(values[match[1]]), sql)


def _literal(value: Any) -> str:
    return "'{}'".format(value.replace("'", "''")) if isinstance(value, str) else str(value)
