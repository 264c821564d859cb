"""Run records: which artifacts one run of the DAG ended with, so that runs can be compared.

A run is named after what it is made of. Doing it again gives the same name, so a second run of
an unchanged recipe adds no record.
"""

import json
import time
from collections.abc import Sequence

from pipeline.materialize import Outcome
from pipeline.recipe import Recipe
from storage.artifacts import ArtifactStore
from storage.manifest import Manifest, fingerprint_of


def run_name(manifests: Sequence[Manifest]) -> str:
    """Return the name of the run that ends with these artifacts."""
    return fingerprint_of({m.stage: m.fingerprint for m in manifests})[:10]


def record_run(store: ArtifactStore, recipe: Recipe, outcomes: Sequence[Outcome]) -> str:
    """Write the record of a finished run, unless it is there already, and return its name."""
    manifests = [outcome.manifest for outcome in outcomes]
    name = run_name(manifests)
    path = f"runs/{name}.json"
    if store.read(path) is None:
        record = {
            "run": name,
            "created": time.time(),
            "seconds": round(sum(outcome.seconds for outcome in outcomes), 1),
            "recipe": recipe.model_dump(mode="json"),
            "stages": {
                m.stage: {"fingerprint": m.fingerprint, "digest": m.digest} for m in manifests
            },
            "made": [outcome.stage for outcome in outcomes if outcome.status == "made"],
        }
        store.write(path, json.dumps(record, indent=1).encode())
    return name
