"""Materialize a stage: find its artifact, or make it once and commit it.

The store's manifests are the only truth. A lock saves work when two runs meet; it never decides
correctness, because after acquiring it the manifest is looked up again.
"""

import importlib.metadata
import shutil
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pipeline.code_identity import ROOT, code_digests
from pipeline.errors import PipelineError
from pipeline.progress import Reporter
from pipeline.recipe import Recipe
from pipeline.settings import Settings
from pipeline.stage import Stage, StageContext
from storage.artifacts import ArtifactStore
from storage.leases import lease
from storage.manifest import Manifest, fingerprint_of

PACKAGES = ("torch", "open_clip_torch", "transformers", "tokenizers", "pyarrow", "peft")


@dataclass(frozen=True)
class Outcome:
    """What came of a stage: `made` by this call or `cached`, and how long this call took."""

    stage: str
    status: Literal["made", "cached"]
    manifest: Manifest
    seconds: float


def payload_of(stage: Stage, recipe: Recipe, inputs: Mapping[str, str]) -> dict[str, Any]:
    """Return everything that bears a stage's identity.

    Args:
        stage: The stage.
        recipe: The complete recipe; only the parts the stage reads enter.
        inputs: Digests of its input artifacts, by stage name.
    """
    arguments = stage.arguments(recipe)
    return {
        "stage": stage.name,
        "recipe": {
            name: value.model_dump(mode="json") if hasattr(value, "model_dump") else value
            for name, value in arguments.items()
        },
        "code": code_digests(stage.module),
        "inputs": dict(inputs),
        "source": dict(stage.source_state(recipe)),
    }


def materialize(
    stage: Stage,
    recipe: Recipe,
    inputs: Mapping[str, Manifest],
    store: ArtifactStore,
    settings: Settings,
    report: Reporter,
    *,
    force: bool = False,
) -> Outcome:
    """Return a stage's artifact, running its function only where it is not there yet.

    Args:
        stage: What to make.
        recipe: The complete recipe.
        inputs: Manifests of the stages it reads.
        store: Where artifacts live.
        settings: Device, threads and the like.
        report: Progress.
        force: Make it again even if it is there.

    Raises:
        PipelineError: The stage cannot go on for a reason its user can mend.
        StorageError: The store cannot be read or written.
    """
    start = time.monotonic()
    payload = payload_of(stage, recipe, {name: inputs[name].digest for name in sorted(inputs)})
    fingerprint = fingerprint_of(payload)
    found = None if force else usable(store, stage.name, fingerprint)
    if found is None:
        key = f"{stage.name}-{fingerprint[:16]}"
        waited = time.time()
        with lease(store, settings.work / "locks", key, say=report.say):
            found = usable(store, stage.name, fingerprint)
            if found is None or (force and found.created < waited):
                manifest = _make(stage, recipe, inputs, store, settings, report, payload)
                return Outcome(stage.name, "made", manifest, time.monotonic() - start)
    return Outcome(stage.name, "cached", found, time.monotonic() - start)


def usable(store: ArtifactStore, stage: str, fingerprint: str) -> Manifest | None:
    """Return a committed manifest whose files are all there, or None."""
    manifest = store.find(stage, fingerprint)
    return manifest if manifest and not store.damage(manifest) else None


def _make(
    stage: Stage,
    recipe: Recipe,
    inputs: Mapping[str, Manifest],
    store: ArtifactStore,
    settings: Settings,
    report: Reporter,
    payload: dict[str, Any],
) -> Manifest:
    fingerprint = fingerprint_of(payload)
    workspace = settings.work / "workspaces" / f"{stage.name}-{fingerprint[:16]}"
    context = StageContext(
        inputs={name: store.artifact(manifest) for name, manifest in inputs.items()},
        out=_empty(workspace / "out"),
        scratch=workspace / "scratch",
        settings=settings,
        report=report,
    )
    context.scratch.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    summary = stage.function()(context, **stage.arguments(recipe))
    manifest = store.commit(
        stage=stage.name,
        fingerprint=fingerprint,
        payload=payload,
        folder=context.out,
        summary=summary,
        packages={name: _version(name) for name in PACKAGES},
        commit=_git_commit(),
        seconds=time.monotonic() - start,
    )
    shutil.rmtree(workspace, ignore_errors=True)
    return manifest


def _empty(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise PipelineError(
            f"cannot create {folder}: {error.strerror}",
            "choose a writable folder with --store or PHIVISION_WORKDIR",
        ) from error
    return folder


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _git_commit() -> str:
    command = ["git", "-C", str(ROOT), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()
