"""The plan: which stages would run, and why, in words; it runs nothing and imports no torch."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pipeline.engine.dag import DAG
from pipeline.engine.materialize import (
    NEVER_MADE,
    Outcome,
    as_last_seen,
    look_up,
    other_versions,
    payload_of,
)
from pipeline.engine.stage import Stage
from pipeline.errors import PipelineError
from pipeline.recipe.recipe import Recipe, flatten
from storage.store.artifacts import ArtifactStore
from storage.store.manifest import Manifest, fingerprint_of

FORCED = "forced by --rerun"
COMPARED = 32  # artifacts of a stage, the newest, among which the nearest is looked for
SHOWN = 4  # differences named, and files of changed code


@dataclass(frozen=True)
class Step:
    """The verdict on one stage: exact if its inputs are fresh, else `unknown`.

    A stage whose inputs will be made again may still turn out fresh: they may be the same again.
    """

    stage: str
    status: Literal["fresh", "stale", "unknown"]
    reason: str
    manifest: Manifest | None = None


def plan(
    recipe: Recipe,
    store: ArtifactStore,
    rerun: Collection[str] = (),
    stages: Sequence[Stage] = DAG,
) -> list[Step]:
    """Return the verdict on every stage, in the order of the DAG.

    Raises:
        PipelineError: `rerun` names an unknown stage.
        StorageError: The store or an outside source cannot be read.
    """
    check_stages(rerun, stages)
    steps: dict[str, Step] = {}
    for stage in stages:
        pending = [name for name in stage.inputs_with(recipe) if steps[name].status != "fresh"]
        if stage.name in rerun:
            steps[stage.name] = Step(stage.name, "stale", FORCED)
        elif pending:
            reason = f"depends on {', '.join(pending)}"
            steps[stage.name] = Step(stage.name, "unknown", reason)
        else:
            steps[stage.name] = _judge(stage, recipe, store, steps)
    return list(steps.values())


def cached_outcomes(steps: Sequence[Step]) -> list[Outcome] | None:
    """Return the outcomes of a run that has nothing to do, or None where something is stale."""
    outcomes = [
        Outcome(step.stage, "cached", step.manifest, 0.0)
        for step in steps
        if step.status == "fresh" and step.manifest
    ]
    return outcomes if len(outcomes) == len(steps) else None


def check_stages(names: Collection[str], stages: Sequence[Stage] = DAG) -> None:
    """Raise PipelineError for a name that is not a stage."""
    known = [stage.name for stage in stages]
    for name in names:
        if name not in known:
            raise PipelineError(f"there is no stage '{name}'", f"stages: {', '.join(known)}")


def present_payload(
    stage: Stage, recipe: Recipe, store: ArtifactStore, steps: Mapping[str, Step]
) -> dict[str, Any]:
    """Return the payload of a stage whose inputs are all fresh."""
    digests = {}
    for name in sorted(stage.inputs_with(recipe)):
        manifest = steps[name].manifest
        assert manifest is not None
        digests[name] = manifest.digest
    return as_last_seen(store, payload_of(stage, recipe, digests))


def _judge(stage: Stage, recipe: Recipe, store: ArtifactStore, steps: Mapping[str, Step]) -> Step:
    payload = present_payload(stage, recipe, store, steps)
    stored = look_up(store, stage.name, fingerprint_of(payload))
    if stored.manifest is not None and not stored.fault:
        return Step(stage.name, "fresh", _note(stored.manifest), stored.manifest)
    if stored.fault != NEVER_MADE:
        return Step(stage.name, "stale", stored.fault)
    return Step(stage.name, "stale", why(payload, store.manifests(stage.name, COMPARED)))


def _note(manifest: Manifest) -> str:
    versions = other_versions(manifest)
    return f"made with other versions: {versions}" if versions else ""


def why(payload: Mapping[str, Any], known: Sequence[Manifest]) -> str:
    """Return in words how a payload differs from the nearest artifact that was made before.

    Args:
        payload: The new payload.
        known: Artifacts of the stage, newest first; of two equally near the newer one counts.
    """
    if not known:
        return NEVER_MADE
    nearest = min((list(differences(each.payload, payload)) for each in known), key=len)
    kinds = [reason for reason in nearest if reason.startswith("field ") and ".kind`" in reason]
    if kinds and len(nearest) > SHOWN:  # of another preset: every field differs
        return f"new: {kinds[0]}, and {len(nearest) - 1} other differences"
    more = f"; and {len(nearest) - SHOWN} more" if len(nearest) > SHOWN else ""
    return f"{'; '.join(nearest[:SHOWN])}{more}"


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    """Yield in words each difference between two payloads of one stage."""
    before, after = dict(flatten(old["recipe"])), dict(flatten(new["recipe"]))
    for field in dict.fromkeys([*before, *after]):
        if before.get(field) != after.get(field):
            yield f"field `{field}` {_short(before.get(field))} → {_short(after.get(field))}"
    for name in sorted({*old["inputs"], *new["inputs"]}):
        if old["inputs"].get(name) != new["inputs"].get(name):
            yield f"input `{name}` changed"
    for name in sorted({*old["source"], *new["source"]}):
        if old["source"].get(name) != new["source"].get(name):
            unseen = new["source"].get(name) == {}
            yield f"source `{name}` {'cannot be checked now' if unseen else 'changed'}"
    changed = changed_code(old, new)
    if changed:
        shown = ", ".join(f"`{path}`" for path in changed[:SHOWN])
        more = f" and {len(changed) - SHOWN} more" if len(changed) > SHOWN else ""
        yield f"code changed: {shown}{more}"


def changed_code(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return the project files whose code differs between two payloads; moved files are not."""
    before, after = set(old["code"].items()), set(new["code"].items())
    moved = {digest for _, digest in before} & {digest for _, digest in after}
    return sorted({path for path, digest in before ^ after if digest not in moved})


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:37]}…"
