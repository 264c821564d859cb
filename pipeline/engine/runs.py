"""Run records: which artifacts one run of the DAG ended with, so that runs can be compared.

A run is named after its artifacts. Repeating it gives the same name, so a second run of an
unchanged recipe adds no record; it only makes that run the latest one.
"""

import json
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from pipeline.engine.materialize import Outcome
from pipeline.errors import PipelineError
from pipeline.recipe.recipe import Recipe, flatten
from storage.store.artifacts import ArtifactStore
from storage.store.manifest import Manifest, fingerprint_of
from storage.store.runs import (
    LATEST,
    DamagedRunError,
    next_number,
    read_refs,
    read_run,
    read_runs,
    write_ref,
)


@dataclass(frozen=True)
class Change:
    """One difference between two runs; None stands for a value that a run does not have."""

    kind: str
    name: str
    before: object
    after: object


def run_name(manifests: Sequence[Manifest]) -> str:
    """Return the name of the run that ends with these artifacts."""
    return fingerprint_of({m.stage: m.fingerprint for m in manifests})[:10]


def record_run(store: ArtifactStore, recipe: Recipe, outcomes: Sequence[Outcome]) -> str:
    """Write the record of a finished run, make it the latest, and return its name.

    Nothing is written if it is the latest already, so a cached run works on a read-only store.
    """
    manifests = [outcome.manifest for outcome in outcomes]
    name = run_name(manifests)
    stages = {m.stage: {"fingerprint": m.fingerprint, "digest": m.digest} for m in manifests}
    latest = store.read(f"refs/{LATEST}")
    old = None
    with suppress(DamagedRunError):  # a damaged record is about to be replaced
        old = read_run(store, name)
    if old is not None and old["stages"] == stages and latest == name.encode():
        return name
    made = [outcome.stage for outcome in outcomes if outcome.status == "made"]
    first = old if old is not None and not made else {}
    record = {
        "run": name,
        "number": next_number(store),
        "created": time.time(),
        "seconds": first.get("seconds", round(sum(outcome.seconds for outcome in outcomes), 1)),
        "recipe": recipe.model_dump(mode="json"),
        "stages": stages,
        "made": first.get("made", made),
    }
    store.write(f"runs/{name}.json", json.dumps(record, indent=1).encode())
    write_ref(store, LATEST, name)
    return name


def find_run(store: ArtifactStore, name: str) -> dict[str, Any]:
    """Return the record of a run, by its name, the start of it, or a name given to it.

    Raises:
        PipelineError: No run matches, or several do.
    """
    name = read_refs(store).get(name, name)
    runs = read_runs(store)
    matches = [record for record in runs if record["run"].startswith(name)]
    exact = [record for record in matches if record["run"] == name]
    if len(exact or matches) == 1:
        return (exact or matches)[0]
    known = ", ".join(record["run"] for record in runs[:8]) or "none yet"
    raise PipelineError(f"{len(matches)} runs match '{name}'", f"the newest runs: {known}")


def compare_runs(store: ArtifactStore, before: str, after: str) -> list[Change]:
    """Return the differences between two runs: recipe fields, digests of stages, metrics.

    Raises:
        PipelineError: A run does not exist.
        StorageError: The metrics of one cannot be read.
    """
    old, new = find_run(store, before), find_run(store, after)
    sides = [
        ("field", dict(flatten(old["recipe"])), dict(flatten(new["recipe"]))),
        ("digest", _digests(old), _digests(new)),
        ("metric", _metrics(store, old), _metrics(store, new)),
    ]
    return [
        Change(kind, name, left.get(name), right.get(name))
        for kind, left, right in sides
        for name in dict.fromkeys([*left, *right])
        if left.get(name) != right.get(name)
    ]


def _digests(run: dict[str, Any]) -> dict[str, object]:
    return {stage: made["digest"][:16] for stage, made in run["stages"].items()}


def _metrics(store: ArtifactStore, run: dict[str, Any]) -> dict[str, object]:
    return {
        f"{row['stage']}/{row['split']}/{row['condition']}/{row['metric']}": row["value"]
        for row in metric_rows(store, run)
    }


def metric_rows(store: ArtifactStore, run: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of the metrics of a run; none where they are gone or were never made."""
    made = run["stages"].get("evaluate")
    manifest = store.find("evaluate", made["fingerprint"]) if made else None
    if manifest is None:
        return []
    return json.loads(store.artifact(manifest).path("metrics.json").read_text())
