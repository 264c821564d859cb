"""The report of one run: what a person needs to know about it, on one page."""

import datetime
from collections.abc import Mapping, Sequence
from typing import Any

from flows.example_scores import MAIN, METRIC_OF, Row, scored_predictions
from flows.pages import report_before, report_looking, report_scores, report_training
from flows.pages.page import figure, own_script, render
from flows.pages.shown_images import images_of
from flows.pages.stage_graph import stage_graph
from flows.pages.vega import chart_library
from pipeline.catalog.catalog import Catalog
from pipeline.evaluation.shown_metrics import SHOWN_METRICS
from pipeline.recipe.recipe import flatten
from storage.store.artifacts import ArtifactStore
from storage.store.manifest import Manifest
from storage.store.published import published, read_history

_METRICS = "SELECT * EXCLUDE (run) FROM metrics WHERE run = $run"
_DROPS = (
    "SELECT kind, reason, count(*) AS count FROM drops GROUP BY ALL "
    "ORDER BY count DESC, kind, reason"
)
_SPLITS = (
    "SELECT split, count(*) AS images, sum(bytes) / 1e6 AS megabytes FROM images GROUP BY ALL "
    "ORDER BY images DESC"
)
_EXAMPLES = (
    "SELECT split, kind, count(*) AS count FROM examples GROUP BY ALL ORDER BY split DESC, kind"
)
_CATEGORIES = (
    "SELECT image_id, list(category ORDER BY object_id) AS names FROM objects GROUP BY ALL"
)
_TRAINING = "SELECT * FROM training ORDER BY stage DESC, metric, step"
_DECISIONS = {
    "published": "published",
    "forced": "published anyway",
    "rolled back": "published again",
    "refused": "not published",
}


def write_report(
    store: ArtifactStore, run: str, images: int, others: Mapping[str, str] | None = None
) -> str:
    """Return the report of a run as one HTML text.

    Args:
        store: Where the run's artifacts are.
        run: Its name.
        images: Images in each group of examples.
        others: Runs beside which it is shown, by what they are called; the one that finished
            before it if None.

    Raises:
        StorageError: An artifact of the run cannot be read.
    """
    catalog = Catalog(store, run)
    record = next(each for each in catalog.runs if each["run"] == run)
    by_stage = {stage: catalog.manifest(stage) for stage in record["stages"]}
    manifests = {stage: manifest for stage, manifest in by_stage.items() if manifest is not None}
    metrics = ask(catalog, ("metrics",), _METRICS, run=run)
    if others is None:
        before = report_before.previous_run(catalog.runs, run)
        others = {} if before is None else {before: before}
    curves = {
        name: ask(Catalog(store, each), ("training",), _TRAINING) for name, each in others.items()
    }
    return render(
        "report.html",
        [chart_library(), own_script("charts.js")],
        title=f"phivision run {run}",
        run=run,
        store=store.uri,
        finished=f"{datetime.datetime.fromtimestamp(record['created'], datetime.UTC):%F %H:%M} UTC",
        seconds=record["seconds"],
        verdict=_verdict(store, manifests),
        tiles=_tiles(metrics, manifests),
        **_scores(catalog, metrics, record["recipe"], images),
        looked=report_looking.looked(catalog, report_looking.EXAMPLES if images else 0),
        training=report_training.training_curves(ask(catalog, ("training",), _TRAINING), curves),
        **_data(catalog),
        **_cost(manifests, record["made"]),
        others=report_before.against(store, run, others),
        recipe=list(flatten(record["recipe"])),
    )


def _scores(
    catalog: Catalog, metrics: Sequence[Row], recipe: Mapping[str, Any], images: int
) -> dict[str, Any]:
    rows = scored_predictions(catalog)
    seed = recipe.get("seed", 0)
    resamples = recipe.get("evaluate", {}).get("resamples", 1000)
    columns, table = report_scores.score_table(metrics)
    return {
        "gaps": report_scores.vision_gaps(metrics, rows, seed, resamples),
        "score_charts": report_scores.score_charts(metrics),
        "score_columns": columns,
        "score_rows": table,
        "groups": _with_images(catalog, report_scores.best_and_worst(rows, images)),
        "metric_of": METRIC_OF,
        "failures": report_scores.failure_charts(rows, _categories(catalog), seed),
    }


def _data(catalog: Catalog) -> dict[str, Any]:
    drops = ask(catalog, ("drops",), _DROPS)
    return {
        "drops": [list(row.values()) for row in drops],
        "drop_chart": report_training.drop_chart(drops) if drops else None,
        "splits": [list(row.values()) for row in ask(catalog, ("images",), _SPLITS)],
        "examples": [list(row.values()) for row in ask(catalog, ("examples",), _EXAMPLES)],
    }


def _cost(manifests: Mapping[str, Manifest], made: Sequence[str]) -> dict[str, Any]:
    return {
        "cost": report_training.cost_rows(manifests, made),
        "cost_chart": report_training.cost_chart(manifests) if manifests else None,
        "stage_graph": stage_graph(manifests, made),
    }


def summary_lines(catalog: Catalog, run: str) -> list[str]:
    """Return the main scores of a run as lines of Markdown, for places that show no HTML."""
    metrics = [row for row in ask(catalog, ("metrics",), _METRICS, run=run) if row["stage"] == MAIN]
    columns, rows = report_scores.score_table(metrics)
    head = f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}"
    return [head, *(f"| {' | '.join(map(str, row))} |" for row in rows)]


def ask(catalog: Catalog, views: Sequence[str], sql: str, **parameters: object) -> list[Row]:
    """Return the rows of a query, none where one of its views has no rows at all."""
    with catalog.open(names=views) as database:
        if set(views) - set(database.names):
            return []
        return database.query(sql, parameters).to_pylist()


def _categories(catalog: Catalog) -> dict[int, list[str]]:
    return {row["image_id"]: row["names"] for row in ask(catalog, ("objects",), _CATEGORIES)}


def _with_images(
    catalog: Catalog, groups: Mapping[str, Sequence[Row]]
) -> dict[str, list[dict[str, Any]]]:
    wanted = [row.get("sha256") or "" for rows in groups.values() for row in rows]
    shown = images_of(catalog, wanted)
    return {
        title: [{**row, "image": shown.get(row.get("sha256") or "")} for row in rows]
        for title, rows in groups.items()
    }


def _verdict(store: ArtifactStore, manifests: Mapping[str, Manifest]) -> tuple[str, str]:
    """Return what the gate decided about a run's assistant, and whether that is good or bad."""
    history = read_history(store)
    if "publish" not in manifests or not history:
        return "", ""
    digest, now = manifests["publish"].digest, published(history)
    entry = next((each for each in history if each.digest == digest), None)
    if entry is None:
        return "not judged", "soft"
    text = f"{_DECISIONS[entry.action]}: {entry.reason}"
    if entry.moved and now is not None and now.digest != digest:
        text += f"; since then run {now.run} was published"
    return text, "bad" if entry.action in ("refused", "forced") else "good"


def _tiles(metrics: Sequence[Row], manifests: Mapping[str, Manifest]) -> list[tuple[str, str, str]]:
    """Return value, name and a note of the figures at the top."""
    by_key = {(row["stage"], row["metric"], row["condition"]): row for row in metrics}
    tiles = []
    for name, shown in SHOWN_METRICS.items():
        row = by_key.get((MAIN, name, "real"))
        if row is not None and len(tiles) < 3 and "lower" not in shown.label:
            others = [
                f"{condition} {figure(by_key[MAIN, name, condition]['value'])}"
                for condition in ("shuffled", "blind")
                if (MAIN, name, condition) in by_key
            ]
            tiles.append((figure(row["value"]), shown.label, ", ".join(others)))
    for stage, key, text in (
        ("images", "images", "images"),
        ("examples", "examples", "examples"),
        ("finetune", "steps", "steps of finetuning"),
    ):
        if stage in manifests and key in manifests[stage].summary:
            tiles.append((figure(manifests[stage].summary[key]), text, ""))
    return tiles
