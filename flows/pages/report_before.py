"""The part of a report about the run before: which scores moved, and what else differs."""

from collections.abc import Mapping, Sequence
from typing import Any

from flows.compare_table import COMPARED, estimate, measure, real_scores
from pipeline.catalog.catalog import Catalog
from pipeline.engine.runs import Change, compare_runs
from pipeline.errors import PipelineError
from storage.store.artifacts import ArtifactStore

# Kinds of change in the order shown; the finetuned model is the one that is published.
_ORDER = ("field", "metric finetune", "metric", "digest")


def previous_run(runs: Sequence[Mapping[str, Any]], run: str) -> str | None:
    """Return the run that finished before a run; `runs` are newest first."""
    names = [record["run"] for record in runs]
    at = names.index(run) + 1
    return names[at] if at < len(names) else None


def against(store: ArtifactStore, run: str, others: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return for each other run how the scores moved and what differs."""
    return [
        {
            "name": name,
            "run": other,
            "moved": score_changes(store, other, run),
            "changes": changes_since(store, other, run),
        }
        for name, other in others.items()
    ]


def score_changes(store: ArtifactStore, before: str, run: str) -> list[list[object]]:
    """Return how the main scores of the finetuned model moved, none where a run has no scores.

    Returns:
        Rows of metric, verdict, difference, before, now. Differences are paired by image and
        question where predictions are scored one by one; only those have an interval, which a
        verdict needs.
    """
    now = measure(store, "now", {}, run, before)
    old = real_scores(Catalog(store, before), before)
    rows: list[list[object]] = []
    for metric, shown in COMPARED.items():
        if metric in old and metric in now["metrics"]:
            scores = [estimate(each) for each in (old[metric], now["metrics"][metric])]
            gap = now["differences"].get(metric)
            moved = estimate(gap, sign=True) if gap else "no interval"
            if shown.kind and gap is None:
                moved = "other images"
            rows.append([shown.heading, _verdict(gap), moved, *scores])
    return rows


def changes_since(store: ArtifactStore, before: str, run: str) -> list[list[object]]:
    """Return in what a run differs from another one: fields, scores, then digests."""
    try:
        changes = compare_runs(store, before, run)
    except PipelineError:
        return []
    ranked = sorted(changes, key=_rank)
    return [[c.kind, c.name, c.before, c.after, _step(c)] for c in ranked]


def _verdict(gap: Mapping[str, float] | None) -> str:
    if gap is None:
        return ""
    if gap["low"] > 0:
        return "better"
    return "worse" if gap["high"] < 0 else "within noise"


def _rank(change: Change) -> int:
    tuned = change.kind == "metric" and change.name.startswith("finetune/")
    return _ORDER.index("metric finetune" if tuned else change.kind)


def _step(change: Change) -> str:
    before, after = change.before, change.after
    if change.kind == "metric" and isinstance(before, float) and isinstance(after, float):
        return f"{after - before:+.3g}"
    return ""
