"""Materialize a stage: find its artifact, or make it once and commit it.

The store's manifests are the only source of truth. A lock saves work when two runs overlap, but
correctness does not depend on it: after acquiring it the manifest is looked up again, and each
process writes into a folder of its own.
"""

import importlib.metadata
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pipeline.engine.code_identity import ROOT, code_digests
from pipeline.engine.stage import FanOut, Stage, StageContext, Summary
from pipeline.progress import Reporter
from pipeline.recipe.recipe import Recipe
from pipeline.settings import Settings
from storage.errors import StorageError, is_full
from storage.store.artifacts import Artifact, ArtifactStore
from storage.store.manifest import DamagedManifestError, Manifest, fingerprint_of
from storage.store.workspaces import Workspace, workspace_key

PACKAGES = ("torch", "open_clip_torch", "transformers", "tokenizers", "pyarrow", "peft")
NEVER_MADE = "never made"
# How native libraries report a full disk.
_NO_ROOM = re.compile(r"no space left|os error 28|disk quota|file too large", re.IGNORECASE)


@dataclass(frozen=True)
class Outcome:
    """The outcome of a stage: `made` by this call or `cached`, and how long this call took."""

    stage: str
    status: Literal["made", "cached"]
    manifest: Manifest
    seconds: float


@dataclass(frozen=True)
class Found:
    """What the store holds under a fingerprint.

    Attributes:
        manifest: The manifest, None where there is none that can be read.
        fault: Why it cannot be used, "" where it can.
    """

    manifest: Manifest | None
    fault: str

    @property
    def attempt(self) -> str:
        """Which of several attempts to make the artifact this is."""
        return self.manifest.attempt if self.manifest else ""


def payload_of(stage: Stage, recipe: Recipe, inputs: Mapping[str, str]) -> dict[str, Any]:
    """Return everything that determines a stage's identity.

    Args:
        stage: The stage.
        recipe: The complete recipe; only the parts the stage reads enter.
        inputs: Digests of its input artifacts, by stage name.
    """
    arguments = {
        name: value.model_dump(mode="json") if hasattr(value, "model_dump") else value
        for name, value in stage.arguments(recipe).items()
    }
    return {
        "stage": stage.name,
        "recipe": arguments,
        "code": code_digests(stage.module, stage.name, also=stage.code_with(recipe)),
        "inputs": dict(inputs),
        "source": {name: dict(state) for name, state in stage.source_state(recipe).items()},
    }


def as_last_seen(store: ArtifactStore, payload: dict[str, Any]) -> dict[str, Any]:
    """Return a payload in which unreachable sources are in the state the newest artifact saw.

    So a complete store is recognized as complete without a network.
    """
    unseen = [name for name, state in payload["source"].items() if not state]
    if unseen:
        for manifest in store.manifests(payload["stage"]):
            before, known = manifest.payload, manifest.payload.get("source", {})
            alike = all(before.get(part) == payload[part] for part in ("recipe", "inputs"))
            if alike and all(known.get(name) for name in unseen):
                return payload | {"source": payload["source"] | {n: known[n] for n in unseen}}
    return payload


def look_up(store: ArtifactStore, stage: str, fingerprint: str) -> Found:
    """Return what the store holds under a fingerprint, and whether it can be used.

    Raises:
        UnknownManifestError: The manifest there has another version.
        StorageError: The store cannot be read.
    """
    try:
        manifest = store.find(stage, fingerprint)
    except DamagedManifestError as error:
        return Found(None, f"damaged: {error.message}")
    if manifest is None:
        return Found(None, NEVER_MADE)
    damage = store.damage(manifest)
    return Found(manifest, f"damaged: {damage}" if damage else "")


def materialize(
    stage: Stage,
    recipe: Recipe,
    inputs: Mapping[str, Manifest],
    store: ArtifactStore,
    settings: Settings,
    report: Reporter,
    *,
    force: bool = False,
    fan_out: FanOut | None = None,
) -> Outcome:
    """Return a stage's artifact, running its function only if the artifact does not exist yet.

    Args:
        stage: What to make.
        recipe: The complete recipe.
        inputs: Manifests of the stages it reads.
        store: Where artifacts live.
        settings: Device, threads and the like.
        report: Progress.
        force: Make it again even if it exists, reusing nothing but the finished work of a killed
            forced run.
        fan_out: Spreads a stage's jobs over other processes.

    Raises:
        PipelineError: The stage cannot continue, for a reason its user can fix.
        StorageError: The store cannot be read or written.
    """
    start = time.monotonic()
    digests = {name: inputs[name].digest for name in sorted(inputs)}
    payload = as_last_seen(store, payload_of(stage, recipe, digests))
    stored = look_up(store, stage.name, fingerprint_of(payload))
    status: Literal["made", "cached"] = "cached"
    if stored.fault or force:
        work = _Work(stage, recipe, inputs, store, settings, report, payload, force, fan_out)
        stored, status = work.make_unless_made(stored)
    manifest = stored.manifest
    assert manifest is not None
    store.note_use(manifest)
    if status == "cached" and (versions := other_versions(manifest)):
        report.say(f"  {stage.name} was made with other versions: {versions}")
    return Outcome(stage.name, status, manifest, time.monotonic() - start)


def other_versions(manifest: Manifest) -> str:
    """Return which libraries have other versions than when an artifact was made, in words.

    Versions are not part of the identity, so an upgrade re-runs nothing; it is only reported.
    """
    pairs = [(name, old, installed_version(name)) for name, old in manifest.packages.items()]
    return ", ".join(f"{name} {old} → {new}" for name, old, new in pairs if old != new)


@dataclass(frozen=True)
class _Work:
    """One attempt to make an artifact."""

    stage: Stage
    recipe: Recipe
    inputs: Mapping[str, Manifest]
    store: ArtifactStore
    settings: Settings
    report: Reporter
    payload: dict[str, Any]
    force: bool
    fan_out: FanOut | None

    def make_unless_made(self, before: Found) -> tuple[Found, Literal["made", "cached"]]:
        """Wait for any process that makes the same artifact, then use that one or make it."""
        from storage.store.leases import lease

        self.store.claim()  # before hours of work
        fingerprint = fingerprint_of(self.payload)
        key = workspace_key(self.stage.name, fingerprint)
        locks = self.settings.work / "locks"
        with lease(self.store, locks, key, say=self.report.say) as exclusive:
            stored = look_up(self.store, self.stage.name, fingerprint)
            # The previous holder of the lock may have made this very artifact.
            if not stored.fault and not (self.force and stored.attempt == before.attempt):
                return stored, "cached"
            space = Workspace(self.settings.work, key, exclusive=exclusive)
            return Found(self._make(stored, space), ""), "made"

    def _make(self, stored: Found, space: Workspace) -> Manifest:
        """Run the stage and commit what it wrote."""
        from storage.store.commits import Provenance, commit

        fault = stored.fault
        space.open(None if fault == NEVER_MADE else stored.attempt or fault, force=self.force)
        try:
            start = time.monotonic()
            summary = self._call(space)
            provenance = Provenance(
                summary=summary,
                packages={name: installed_version(name) for name in PACKAGES},
                commit=_git_commit(),
                seconds=time.monotonic() - start,
                machine=_machine(self.settings),
            )
            size = sum(path.stat().st_size for path in space.out.rglob("*") if path.is_file())
            with self.report.track("hash and store (bytes)", 2 * size) as tick:
                manifest = commit(
                    self.store,
                    space.out,
                    self.payload,
                    fingerprint_of(self.payload),
                    provenance,
                    replace=fault != NEVER_MADE,
                    warn=self.report.say,
                    advance=tick,
                )
            space.remove()
        finally:
            space.close()
        return manifest

    def _context(self, space: Workspace) -> StageContext:
        return StageContext(
            inputs={name: self.store.artifact(each) for name, each in self.inputs.items()},
            out=space.out,
            scratch=space.scratch,
            settings=self.settings,
            report=self.report,
            earlier=self._earlier,
            fan_out=self.fan_out,
            source=self.payload["source"],
        )

    def _earlier(self) -> Iterator[Artifact]:
        """Yield artifacts of the stage that the same model code made, newest first.

        A damaged artifact that is to be made again is among them: its intact files are reused.
        """
        if self.force:
            return
        for manifest in self.store.manifests(self.stage.name):
            if model_code(manifest.payload) == model_code(self.payload):
                yield self.store.artifact(manifest)

    def _call(self, space: Workspace) -> Summary:
        try:
            return self.stage.function()(self._context(space), **self.stage.arguments(self.recipe))
        except Exception as error:
            if _lacks_room(error, space.out):
                raise StorageError(
                    f"stage {self.stage.name} found no space left in {space.out}",
                    "free some space and run again: finished work is kept",
                ) from error
            # A failing store or network is no reason to distrust finished work.
            if self.force and not isinstance(error, StorageError):
                space.distrust()
            raise


def model_code(payload: Mapping[str, Any]) -> list[str]:
    """Return digests of the code that computes, apart from the code that handles files."""
    code = payload.get("code", {})
    return sorted(digest for path, digest in code.items() if path.startswith("model/"))


def _lacks_room(error: BaseException | None, folder: Path) -> bool:
    """Return whether a stage failed because the disk is full, however a library words it."""
    while error is not None:
        if (isinstance(error, OSError) and is_full(error)) or _NO_ROOM.search(str(error)):
            return True
        error = error.__cause__ or error.__context__
    try:
        return shutil.disk_usage(folder).free < 2**20
    except OSError:
        return False


def installed_version(package: str) -> str:
    """Return the version of an installed package, "" if it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _machine(settings: Settings) -> dict[str, str]:
    """Return the device and the CPU threads of a stage that computed with torch."""
    if "torch" not in sys.modules:  # nothing that depends on either was computed
        return {}
    import torch

    from pipeline.engine.devices import pick_device

    return {"device": pick_device(settings), "threads": str(torch.get_num_threads())}


def _git_commit() -> str:
    command = ["git", "-C", str(ROOT), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()
