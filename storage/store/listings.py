"""What is below many folders of a store, in as few requests as an object store allows."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import PurePosixPath

from storage.filesystem import FileState
from storage.store.artifacts import ArtifactStore, use_name, used_at
from storage.store.manifest import Manifest


def states_by_folder(
    store: ArtifactStore, folders: Collection[str]
) -> dict[str, Mapping[str, FileState]]:
    """Return the state of every file below each folder, by name relative to it.

    An object store lists a thousand objects in one request, so there the folders above are listed,
    and not each folder by itself.

    Args:
        store: The store.
        folders: Names such as `artifacts/images/0123456789abcdef-01234567`.

    Raises:
        StorageError: The store cannot be listed.
    """
    if store.local:
        return {folder: store.files.states(folder) for folder in folders}
    states: dict[str, dict[str, FileState]] = {folder: {} for folder in folders}
    for above in sorted({folder.rpartition("/")[0] for folder in folders}):
        for name, state in store.files.states(above).items():
            below, _, rest = name.partition("/")
            if rest and f"{above}/{below}" in states:
                states[f"{above}/{below}"][rest] = state
    return dict(states)


def last_uses(store: ArtifactStore, manifests: Sequence[Manifest]) -> list[float]:
    """Return when a run last made or used each artifact; only records that exist are read.

    Raises:
        StorageError: The store cannot be read.
    """
    stages = {manifest.stage for manifest in manifests}
    there = {name for stage in stages for name in store.list(f"used/{stage}")}
    names = [name for name in map(use_name, manifests) if name in there]
    read = dict(zip(names, store.read_all(names), strict=True))
    return [used_at(manifest, read.get(use_name(manifest))) for manifest in manifests]


def marked_attempts(store: ArtifactStore, stages: Collection[str]) -> set[str]:
    """Return the attempts of some stages that are marked as damaged.

    Raises:
        StorageError: The store cannot be listed.
    """
    return {PurePosixPath(n).stem for stage in stages for n in store.list(f"damaged/{stage}")}
