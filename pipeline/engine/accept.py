"""Adopting an artifact: after a refactor that changes code but no result, keep the artifact.

An adopted artifact gets a new manifest under the stage's current fingerprint. It records the
original fingerprint and refers to the same files, so nothing is copied.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pipeline.engine.dag import DAG
from pipeline.engine.plan import Step, check_stages, differences, plan, present_payload
from pipeline.engine.stage import Stage
from pipeline.errors import PipelineError
from pipeline.recipe.recipe import Recipe
from storage.store.artifacts import ArtifactStore
from storage.store.commits import publish
from storage.store.manifest import Manifest, fingerprint_of


@dataclass(frozen=True)
class Adoption:
    """What was adopted.

    Attributes:
        manifest: The new manifest.
        differences: What changed since it was made, in words.
    """

    manifest: Manifest
    differences: list[str]


def accept(
    name: str,
    recipe: Recipe,
    store: ArtifactStore,
    *,
    made_as: str = "",
    stages: Sequence[Stage] = DAG,
) -> Adoption:
    """Adopt the newest artifact of a stage that differs from the current one in its code only.

    Raises:
        PipelineError: The stage does not exist or is fresh, its inputs are not fresh, or no
            artifact fits.
        StorageError: The store cannot be read or written.
    """
    check_stages([name], stages)
    steps = {step.stage: step for step in plan(recipe, store, (), stages)}
    _refuse(steps[name])
    stage = next(stage for stage in stages if stage.name == name)
    payload = present_payload(stage, recipe, store, steps)
    old = _choose(store, name, payload, made_as)
    adopted = old.model_copy(
        update={
            "fingerprint": fingerprint_of(payload),
            "payload": payload,
            "accepted": old.accepted or old.fingerprint,
            "replaced": "",
        }
    )
    store.note_use(old)  # before `gc` can remove it
    manifest = publish(store, adopted, replace=True, warn=lambda _: None)
    store.note_use(manifest)
    return Adoption(manifest, list(differences(old.payload, payload)))


def accept_all(
    recipe: Recipe, store: ArtifactStore, stages: Sequence[Stage] = DAG
) -> Iterator[Adoption]:
    """Adopt, for every stage that is not fresh, the artifact that differs in its code only.

    Raises:
        PipelineError: A stage has no such artifact; the stages before it have been adopted.
        StorageError: The store cannot be read or written.
    """
    for stage in stages:
        steps = {step.stage: step for step in plan(recipe, store, (), stages)}
        if steps[stage.name].status != "fresh":
            yield accept(stage.name, recipe, store, stages=stages)


def _refuse(step: Step) -> None:
    """Raise if a stage needs no acceptance, or its fingerprint is not known yet."""
    if step.status == "fresh":
        raise PipelineError(f"{step.stage} is fresh: there is nothing to accept")
    if step.status == "unknown":
        raise PipelineError(
            f"{step.stage} {step.reason}, so its fingerprint is not known yet",
            "accept or run those stages first",
        )


def _choose(store: ArtifactStore, name: str, payload: dict[str, object], made_as: str) -> Manifest:
    usable = [manifest for manifest in store.manifests(name) if not store.damage(manifest)]
    if not usable:
        raise PipelineError(f"{name} has no intact artifact to adopt", "`phivision run` makes one")
    if made_as:
        matches = [manifest for manifest in usable if manifest.fingerprint.startswith(made_as)]
        if len(matches) == 1:
            return matches[0]
        raise PipelineError(
            f"{len(matches)} artifacts of {name} have a fingerprint that starts with {made_as}",
            f"there are: {', '.join(manifest.fingerprint[:12] for manifest in usable[:8])}",
        )
    for manifest in usable:
        if all(manifest.payload[part] == payload[part] for part in ("recipe", "inputs", "source")):
            return manifest
    rest = [text for text in differences(usable[0].payload, payload) if text[:4] != "code"]
    raise PipelineError(
        f"no artifact of {name} differs in its code only; the newest has {'; '.join(rest[:4])}",
        f"--made-as {usable[0].fingerprint[:12]} adopts it anyway",
    )
