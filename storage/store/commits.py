"""Committing an artifact: files first, then the manifest that makes them visible.

Of two commits under one fingerprint the first wins, so that all runs continue with the same
artifact; only a deliberate replacement overrides it.
"""

import hashlib
import json
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from storage.errors import StorageError
from storage.filesystem import hash_file, local_error, state_of, unseen
from storage.layout import listing_name
from storage.store.artifacts import ArtifactStore
from storage.store.manifest import DamagedManifestError, FileRecord, Manifest, digest_of, encode

UPLOADS = 4  # files sent to a remote store at once


@dataclass(frozen=True)
class Provenance:
    """Where an artifact came from, for people; not part of its identity.

    Attributes:
        summary: Figures of the stage.
        packages: Versions of the libraries that shape outputs.
        commit: Git commit of the code.
        seconds: How long the stage ran.
        machine: What computed it, e.g. `device` and `threads`; empty where that is not known.
    """

    summary: Mapping[str, Any]
    packages: Mapping[str, str]
    commit: str
    seconds: float
    machine: Mapping[str, str] = field(default_factory=dict)


def commit(
    store: ArtifactStore,
    folder: Path,
    payload: Mapping[str, Any],
    fingerprint: str,
    provenance: Provenance,
    *,
    replace: bool = False,
    warn: Callable[[str], None],
    advance: Callable[[int], None] = unseen,
) -> Manifest:
    """Upload a folder's files, make them visible, and return the manifest that is now valid.

    The folder is left unchanged, so that a kill in the middle loses nothing.

    Args:
        store: The store.
        folder: What came out of the stage.
        payload: What went in; its `stage` names the stage.
        fingerprint: Hash of the payload.
        provenance: Where it came from.
        replace: Replace what is committed under this fingerprint.
        warn: Called if the same fingerprint gave another digest before.
        advance: Called for every byte twice: when it is hashed and when it is in the store.

    Raises:
        StorageError: The folder is empty or the store cannot be written.
    """
    records = scan(folder, advance)
    if not records:
        raise StorageError(
            f"stage {payload['stage']} wrote no file", "this is a defect of the stage"
        )
    manifest = _described(payload, fingerprint, records, provenance)
    try:
        write_listing(store, manifest)
        _upload(store, folder, manifest, advance)
        stands = publish(store, manifest, replace=replace, warn=warn)
    except StorageError:
        _discard(store, manifest)
        raise
    if stands.attempt != manifest.attempt:
        _discard(store, manifest)
    return stands


def _described(
    payload: Mapping[str, Any],
    fingerprint: str,
    records: tuple[FileRecord, ...],
    provenance: Provenance,
) -> Manifest:
    """Return the manifest of a new attempt."""
    return Manifest(
        stage=payload["stage"],
        fingerprint=fingerprint,
        payload=dict(payload),
        digest=digest_of(records),
        attempt=f"{fingerprint[:16]}-{uuid.uuid4().hex[:8]}",
        files=records,
        summary=dict(provenance.summary),
        packages=dict(provenance.packages),
        commit=provenance.commit,
        created=time.time(),
        seconds=round(provenance.seconds, 3),
        machine=dict(provenance.machine),
    )


def publish(
    store: ArtifactStore,
    manifest: Manifest,
    *,
    replace: bool = False,
    warn: Callable[[str], None],
) -> Manifest:
    """Write a manifest and return the one that is now valid under its fingerprint.

    Raises:
        UnknownManifestError: There is one of another schema.
        StorageError: The store cannot be written.
    """
    name = f"manifests/{manifest.stage}/{manifest.fingerprint}.json"
    if not replace and store.create(name, encode(manifest)):
        return manifest
    try:
        old = store.find(manifest.stage, manifest.fingerprint)
    except DamagedManifestError:
        old = None
    if old is not None and old.digest != manifest.digest:
        warn(
            f"  WARNING: {manifest.stage} is not deterministic: the same inputs gave digest "
            f"{_made(old)} before and {_made(manifest)} now"
        )
        manifest = manifest.model_copy(update={"replaced": old.digest})
    if old is not None and not replace:
        return old
    store.write(name, encode(manifest))
    return manifest


def write_listing(store: ArtifactStore, manifest: Manifest) -> None:
    """Record which files an attempt will have, so that `gc` can tell them from other people's.

    Raises:
        StorageError: The store cannot be written.
    """
    names = {"files": [record.name for record in manifest.files]}
    store.write(listing_name(manifest.stage, manifest.attempt), json.dumps(names).encode())


def read_listing(store: ArtifactStore, stage: str, attempt: str) -> set[str] | None:
    """Return the names of an attempt's files according to its listing, None without one."""
    data = store.read(listing_name(stage, attempt))
    with suppress(ValueError, TypeError, KeyError):
        return set(map(str, json.loads(data or b"")["files"]))
    return None


def _made(manifest: Manifest) -> str:
    """Return a digest and what computed it, which may explain why two differ."""
    parts = ", ".join(f"{name} {value}" for name, value in sorted(manifest.machine.items()))
    return f"{manifest.digest[:12]}{f' ({parts})' if parts else ''}"


def scan(folder: Path, advance: Callable[[int], None] = unseen) -> tuple[FileRecord, ...]:
    """Return a record of every file below a folder, sorted by name.

    Raises:
        StorageError: A file cannot be read, or has an unsafe name.
    """
    records = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        try:
            sha256 = hash_file(path, hashlib.sha256(), advance)
            records.append(FileRecord(name=name, bytes=state_of(path).bytes, sha256=sha256))
        except OSError as error:
            raise local_error("read", path, error) from error
        except ValidationError as error:
            fault = error.errors()[0]["msg"]
            raise StorageError(f"a stage wrote {name!r}: {fault}", "rename that file") from None
    return tuple(records)


def _upload(
    store: ArtifactStore, folder: Path, manifest: Manifest, advance: Callable[[int], None]
) -> None:
    def put(record: FileRecord) -> int:
        store.put(folder / record.name, f"{manifest.folder}/{record.name}")
        return record.bytes

    if store.local:
        for record in manifest.files:
            advance(put(record))
    else:
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(UPLOADS) as pool:
            for size in pool.map(put, manifest.files):
                advance(size)
    # What becomes visible must be complete, whatever the store answered.
    states = store.files.states(manifest.folder)
    for record in manifest.files:
        if record.name not in states or states[record.name].bytes != record.bytes:
            raise StorageError(
                f"{store.uri}/{manifest.folder}/{record.name} arrived incomplete",
                "run again: finished work is kept",
            )
    if store.local:
        store.stamps.add(manifest.attempt, states)


def _discard(store: ArtifactStore, manifest: Manifest) -> None:
    with suppress(StorageError):  # `gc` removes leftovers
        store.files.remove(manifest.folder)
        store.files.remove(listing_name(manifest.stage, manifest.attempt))
