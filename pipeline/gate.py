"""Whether a run's assistant may be published, and the pointer that says which one is.

The artifact is made in any case. The pointer moves only to a model that provably looks at the
picture and is not worse, beyond noise, than the one that is published.
"""

import json
from typing import Any

from pipeline.errors import PipelineError
from pipeline.recipe import Recipe
from pipeline.schemas import CONDITIONS
from storage.artifacts import ArtifactStore
from storage.manifest import Manifest
from storage.published import Entry, add_entry, previous, published, read_history
from storage.runs import read_run

STAGE = "publish"
_KINDS = {"cider_d": "caption", "answer_accuracy": "answer"}
_RESAMPLES = 2000


def publish_run(store: ArtifactStore, recipe: Recipe, run: str, *, anyway: bool = False) -> Entry:
    """Judge a finished run, move the pointer if it may, and return the decision.

    A decision that was taken already is not taken again, so a cached run writes nothing.

    Args:
        store: The store.
        recipe: The run's recipe; `publish.metric` is the main metric.
        run: Name of the run.
        anyway: Publish whatever the verdict is; this is recorded.

    Raises:
        PipelineError: The run's artifacts are gone.
    """
    history = read_history(store)
    now = published(history)
    candidate = _manifest(store, run, STAGE)
    if now is not None and now.digest == candidate.digest:
        return now
    against = now.digest if now else ""
    same = [each for each in history if (each.digest, each.against) == (candidate.digest, against)]
    if same and same[0].action == "refused" and not anyway:
        return same[0]
    fault = _withdrawn(history, candidate.digest) or _fault(store, recipe, run, now)
    if not fault:
        action, reason = "published", "the picture helps, and it is not worse beyond noise"
    else:
        action, reason = ("forced" if anyway else "refused"), fault
    return add_entry(
        store,
        history,
        action=action,
        run=run,
        fingerprint=candidate.fingerprint,
        digest=candidate.digest,
        reason=reason,
        against=against,
    )


def roll_back(store: ArtifactStore) -> Entry:
    """Move the pointer to what was published before, and return the decision.

    Raises:
        PipelineError: There is nothing to go back to, or it is gone.
    """
    history = read_history(store)
    now, before = published(history), previous(history)
    if now is None or before is None:
        raise PipelineError("nothing was published before", "`phivision runs` lists the runs")
    if store.find(STAGE, before.fingerprint) is None:
        raise PipelineError(
            f"the assistant of run {before.run} is gone", "make it again with that run's recipe"
        )
    return add_entry(
        store,
        history,
        action="rolled back",
        run=before.run,
        fingerprint=before.fingerprint,
        digest=before.digest,
        reason=f"back from run {now.run}",
        against=now.digest,
    )


def published_manifest(store: ArtifactStore) -> Manifest:
    """Return the manifest of the published assistant.

    Raises:
        PipelineError: Nothing is published, or it is gone.
    """
    now = published(read_history(store))
    if now is None:
        raise PipelineError(
            f"{store.uri} holds no published assistant",
            "`phivision run` makes one; --publish-anyway publishes it whatever its scores are",
        )
    manifest = store.find(STAGE, now.fingerprint)
    if manifest is None:
        raise PipelineError(
            f"the published assistant of run {now.run} is gone",
            "make it again with that run's recipe, or `phivision rollback`",
        )
    return manifest


def status_line(entry: Entry) -> str:
    """Return a decision in one line."""
    match entry.action:
        case "refused":
            return f"not published: {entry.reason}\n  → --publish-anyway publishes it all the same"
        case "forced":
            return f"published anyway: {entry.reason}"
        case "rolled back":
            return f"published: run {entry.run}, by rollback"
    return f"published: run {entry.run}"


def vision_fault(rows: list[dict[str, Any]], metric: str) -> str:
    """Return why metrics do not prove that the picture is used, or an empty string.

    Args:
        rows: Rows of `metrics.json`.
        metric: The main metric.
    """
    found = {
        row["condition"]: row
        for row in rows
        if row["stage"] == "finetune" and row["metric"] == f"{metric}_gap"
    }
    for condition in CONDITIONS[1:]:
        row = found.get(condition)
        if row is None or row["low"] is None:
            return f"{metric} has no interval for real against {condition} pictures"
        if row["low"] <= 0:
            return (
                f"{metric} with the real picture is {row['value']:+.3f} "
                f"[{row['low']:.3f}, {row['high']:.3f}] against a {condition} one: "
                "it is not shown that the model uses the picture"
            )
    return ""


def _withdrawn(history: list[Entry], digest: str) -> str:
    """Return that an assistant was rolled back from, as long as nobody published it again."""
    newest = next(
        (each for each in history if each.moved and digest in (each.digest, each.against)), None
    )
    if newest is not None and newest.action == "rolled back" and newest.against == digest:
        return "it was published before and rolled back from"
    return ""


def _fault(store: ArtifactStore, recipe: Recipe, run: str, now: Entry | None) -> str:
    metric = recipe.publish.metric
    evaluated = _manifest(store, run, "evaluate")
    rows = json.loads(store.artifact(evaluated).path("metrics.json").read_text())
    fault = vision_fault(rows, metric)
    if fault or now is None:
        return fault
    record = read_run(store, now.run)
    made = record["stages"].get("evaluate") if record else None
    known = store.find("evaluate", made["fingerprint"]) if made else None
    if known is None:
        return f"the scores of the published run {now.run} are gone, so nothing can be compared"
    return _worse(store, metric, known, evaluated, recipe.seed, now.run)


def _worse(
    store: ArtifactStore, metric: str, before: Manifest, after: Manifest, seed: int, run: str
) -> str:
    """Return that a model is worse on the pictures both were tested on, or an empty string."""
    from pipeline.bootstrap import paired_difference

    old, new = _scores(store, metric, before), _scores(store, metric, after)
    shared = sorted(old.keys() & new.keys())
    if not shared:
        return f"it was tested on other pictures than the published run {run}"
    difference = paired_difference(
        [new[key] for key in shared], [old[key] for key in shared], seed, _RESAMPLES
    )
    if difference.high >= 0:
        return ""
    return (
        f"{metric} is {-difference.value:.3f} [{-difference.high:.3f}, {-difference.low:.3f}] "
        f"below the published run {run}"
    )


def _scores(store: ArtifactStore, metric: str, evaluated: Manifest) -> dict[str, float]:
    """Return the score of every prediction by what was asked: picture, question, references."""
    from storage.tables import read_table, where

    columns = ["stage", "condition", "kind", "image_id", "question", "references", "score"]
    table = read_table(store.artifact(evaluated).path("predictions.parquet"), columns)
    rows = where(table, stage="finetune", condition="real", kind=_KINDS[metric]).to_pylist()
    return {
        json.dumps([row["image_id"], row["question"], row["references"]]): row["score"]
        for row in rows
        if row["score"] is not None
    }


def _manifest(store: ArtifactStore, run: str, stage: str) -> Manifest:
    record = read_run(store, run)
    made = record["stages"].get(stage) if record else None
    manifest = store.find(stage, made["fingerprint"]) if made else None
    if manifest is None:
        raise PipelineError(f"run {run} has no artifact of {stage}", "`phivision run` makes it")
    return manifest
