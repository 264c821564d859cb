"""Whether a run's assistant may be published, and the pointer that says which one is.

The artifact is made in any case. The pointer moves only to a model that provably looks at the
image, beats captions that need no model, and is not worse, beyond noise, than the one that is
published.
"""

import json
from collections.abc import Callable
from typing import Any

from pipeline.data.schemas import BASELINES, CONDITIONS
from pipeline.errors import PipelineError
from pipeline.evaluation.shown_metrics import SHOWN_METRICS
from pipeline.recipe.recipe import Recipe
from pipeline.settings import Settings
from storage.store.artifacts import ArtifactStore
from storage.store.manifest import Manifest
from storage.store.published import Entry, add_entry, previous, published, read_history
from storage.store.runs import read_run

STAGE = "publish"
_RESAMPLES = 2000
_BASELINES = {
    "most_frequent": "the commonest training caption for every image",
    "nearest_neighbour": "the caption of the most similar training image",
    "neighbour_consensus": "the caption of similar images that agrees most with the others",
}


def decide(
    store: ArtifactStore,
    recipe: Recipe,
    run: str,
    settings: Settings,
    tell: Callable[[ArtifactStore, Entry], None] | None = None,
) -> Entry | None:
    """Return the decision about a finished run, None where its settings disable the gate.

    `tell` is called as by `publish_run`.
    """
    if not settings.judge:
        return None
    return publish_run(store, recipe, run, anyway=settings.publish_anyway, tell=tell)


def publish_run(
    store: ArtifactStore,
    recipe: Recipe,
    run: str,
    *,
    anyway: bool = False,
    tell: Callable[[ArtifactStore, Entry], None] | None = None,
) -> Entry:
    """Judge a finished run, move the pointer if it passes, and return the decision.

    A recorded refusal is not recorded again, so a cached run writes nothing. The run is judged
    again: another main metric, or restored scores, may let it pass now.

    Args:
        store: The store.
        recipe: The run's recipe; `publish.metric` is the main metric.
        run: Name of the run.
        anyway: Publish whatever the verdict is; this is recorded.
        tell: Called with the store and a decision that this call has recorded: once for each
            entry of the history, whoever else judges at the same time.

    Raises:
        PipelineError: The run's artifacts are gone.
    """
    candidate = _manifest(store, run, STAGE)
    entry = None
    while entry is None:  # if another process decided in between, the verdict may change
        entry, new = _decision(store, recipe, run, candidate, anyway=anyway)
    if new and tell is not None:
        tell(store, entry)
    return entry


def _decision(
    store: ArtifactStore, recipe: Recipe, run: str, candidate: Manifest, *, anyway: bool
) -> tuple[Entry | None, bool]:
    """Return the decision about a run, None if another was recorded meanwhile, and if it is new."""
    history = read_history(store)
    now = published(history)
    if now is not None and now.digest == candidate.digest:
        return now, False
    against = now.digest if now else ""
    fault = _withdrawn(history, candidate.digest) or _fault(store, recipe, run, now)
    if fault and not anyway:
        refusal = ("refused", candidate.digest, against, fault)
        for earlier in history:
            if (earlier.action, earlier.digest, earlier.against, earlier.reason) == refusal:
                return earlier, False
    action = ("forced" if anyway else "refused") if fault else "published"
    entry = add_entry(
        store,
        history,
        action=action,
        run=run,
        fingerprint=candidate.fingerprint,
        digest=candidate.digest,
        reason=fault or "the image helps, and it is not worse beyond noise",
        against=against,
    )
    return entry, True


def roll_back(store: ArtifactStore) -> Entry:
    """Move the pointer to what was published before, and return the decision.

    Raises:
        PipelineError: Nothing was published before, or it is gone.
    """
    entry = None
    while entry is None:  # if another process decided in between, the previous one may change
        entry = _step_back(store)
    return entry


def _step_back(store: ArtifactStore) -> Entry | None:
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


def status_line(entry: Entry | None) -> str:
    """Return a decision in one line; None stands for a run that was not judged."""
    if entry is None:
        return "not judged: this run is not to be published"
    match entry.action:
        case "refused":
            return (
                f"not published: {entry.reason}\n"
                "  → more images, or more epochs (--set finetune.epochs=N), help; try it with\n"
                f"    `phivision ask IMAGE QUESTION --run {entry.run}`, or --publish-anyway"
            )
        case "forced":
            return f"published anyway: {entry.reason}"
        case "rolled back":
            return f"published: run {entry.run}, by rollback"
    return f"published: run {entry.run}"


def vision_fault(rows: list[dict[str, Any]], metric: str) -> str:
    """Return why metrics do not prove that the image is used, or an empty string."""
    gaps = {
        row["condition"]: row
        for row in rows
        if row["stage"] == "finetune" and row["metric"] == f"{metric}_gap"
    }
    for condition in CONDITIONS[1:]:
        row = gaps.get(condition)
        if row is None or row["low"] is None:
            return f"{metric} has no interval for real against {condition} images"
        if row["low"] <= 0:
            return (
                f"{metric} with the real image is {row['value']:+.3f} "
                f"[{row['low']:.3f}, {row['high']:.3f}] against a {condition} one: "
                "there is no evidence that the model uses the image"
            )
    return ""


def baseline_fault(rows: list[dict[str, Any]], metric: str) -> str:
    """Return which baseline caption beats the model, or an empty string."""
    values = {
        (row["condition"], row["metric"]): row["value"]
        for row in rows
        if row["stage"] == "finetune"
    }
    for name in BASELINES:
        value, real = values.get((name, metric)), values.get(("real", metric))
        if value is not None and real is not None and real < value:
            return (
                f"{metric} with the real image is {real:.3f}, below {value:.3f} of the baseline "
                f"{name}: {_BASELINES[name]}, which needs no model, is better"
            )
    return ""


def _withdrawn(history: list[Entry], digest: str) -> str:
    """Return that an assistant was rolled back, unless it was published again since."""
    newest = next(
        (entry for entry in history if entry.moved and digest in (entry.digest, entry.against)),
        None,
    )
    if newest is not None and newest.action == "rolled back" and newest.against == digest:
        return "it was published before and rolled back from"
    return ""


def _fault(store: ArtifactStore, recipe: Recipe, run: str, now: Entry | None) -> str:
    metric = recipe.publish.metric
    evaluated = _manifest(store, run, "evaluate")
    rows = json.loads(store.artifact(evaluated).path("metrics.json").read_text())
    fault = vision_fault(rows, metric) or baseline_fault(rows, metric)
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
    """Return that a model is worse on the images both were tested on, or an empty string."""
    from pipeline.evaluation.pairing import difference

    old, new = _scores(store, metric, before), _scores(store, metric, after)
    interval = difference(new, old, seed, _RESAMPLES)
    if interval is None:
        return f"it was tested on other images than the published run {run}"
    if interval.high >= 0:
        return ""
    return (
        f"{metric} is {-interval.value:.3f} [{-interval.high:.3f}, {-interval.low:.3f}] "
        f"below the published run {run}"
    )


def _scores(store: ArtifactStore, metric: str, evaluated: Manifest) -> dict[Any, float]:
    from pipeline.evaluation.pairing import scores_by_question
    from storage.tables import read_table, where

    columns = ["stage", "condition", "kind", "image_id", "question", "references", "score"]
    table = read_table(store.artifact(evaluated).path("predictions.parquet"), columns)
    rows = where(table, stage="finetune", condition="real", kind=SHOWN_METRICS[metric].kind)
    return scores_by_question(rows.to_pylist())


def _manifest(store: ArtifactStore, run: str, stage: str) -> Manifest:
    record = read_run(store, run)
    made = record["stages"].get(stage) if record else None
    manifest = store.find(stage, made["fingerprint"]) if made else None
    if manifest is None:
        raise PipelineError(f"run {run} has no artifact of {stage}", "`phivision run` makes it")
    return manifest
