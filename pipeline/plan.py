"""The plan: which stages would run, and why, in words; it runs nothing and imports no torch."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pipeline.dag import DAG
from pipeline.errors import PipelineError
from pipeline.materialize import payload_of
from pipeline.recipe import Recipe, flatten
from pipeline.stage import Stage
from storage.artifacts import ArtifactStore
from storage.manifest import Manifest, fingerprint_of


@dataclass(frozen=True)
class Step:
    """The verdict on one stage: exact up to the first stale one, `unknown` where it depends."""

    stage: str
    status: Literal["fresh", "stale", "unknown"]
    reason: str
    manifest: Manifest | None = None


def plan(recipe: Recipe, store: ArtifactStore, rerun: Collection[str] = ()) -> list[Step]:
    """Return the verdict on every stage, in the order of the DAG.

    Args:
        recipe: What is to be made.
        store: Where artifacts live.
        rerun: Stages to make again although they are fresh.

    Raises:
        PipelineError: `rerun` names no stage.
    """
    check_stages(rerun)
    steps: dict[str, Step] = {}
    for stage in DAG:
        pending = [name for name in stage.inputs_with(recipe) if steps[name].status != "fresh"]
        if pending:
            reason = f"depends on {', '.join(pending)}"
            steps[stage.name] = Step(stage.name, "unknown", reason)
        elif stage.name in rerun:
            steps[stage.name] = Step(stage.name, "stale", "forced by --rerun")
        else:
            steps[stage.name] = _judge(stage, recipe, store, steps)
    return list(steps.values())


def check_stages(names: Collection[str]) -> None:
    """Raise PipelineError for a name that is no stage."""
    known = [stage.name for stage in DAG]
    for name in names:
        if name not in known:
            raise PipelineError(f"there is no stage '{name}'", f"stages: {', '.join(known)}")


def _judge(stage: Stage, recipe: Recipe, store: ArtifactStore, steps: Mapping[str, Step]) -> Step:
    digests = {}
    for name in sorted(stage.inputs_with(recipe)):
        manifest = steps[name].manifest
        assert manifest is not None
        digests[name] = manifest.digest
    payload = payload_of(stage, recipe, digests)
    found = store.find(stage.name, fingerprint_of(payload))
    if found is not None:
        damage = store.damage(found)
        if not damage:
            return Step(stage.name, "fresh", "", found)
        return Step(stage.name, "stale", f"damaged: {damage}")
    return Step(stage.name, "stale", why(payload, store.manifests(stage.name)))


def why(payload: Mapping[str, Any], known: list[Manifest]) -> str:
    """Return in words how a payload differs from the nearest artifact that was made before."""
    differences = [list(_differences(manifest.payload, payload)) for manifest in known]
    if not differences:
        return "never made"
    return "; ".join(min(differences, key=len)[:4])


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    before, after = dict(flatten(old["recipe"])), dict(flatten(new["recipe"]))
    for field in dict.fromkeys([*before, *after]):
        if before.get(field) != after.get(field):
            yield f"field {field} {_short(before.get(field))} → {_short(after.get(field))}"
    for name in sorted({*old["inputs"], *new["inputs"]}):
        if old["inputs"].get(name) != new["inputs"].get(name):
            yield f"input {name} changed"
    if old["source"] != new["source"]:
        yield "the source changed"
    paths = {*old["code"], *new["code"]}
    changed = sorted(path for path in paths if old["code"].get(path) != new["code"].get(path))
    if changed:
        yield f"code changed: {', '.join(changed[:3])}{'…' if len(changed) > 3 else ''}"


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:37]}…"
