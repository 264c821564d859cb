"""Find the assistant that a command means, before slow imports."""

from pathlib import Path

from pipeline.engine.runs import find_run
from pipeline.errors import PipelineError
from pipeline.publishing.gate import STAGE, published_manifest
from pipeline.settings import Settings
from storage.store.artifacts import ArtifactStore
from storage.store.manifest import Manifest

HUB = "hf://"


def find_bundle(settings: Settings, run: str | None, bundle: str | None) -> Manifest | str:
    """Return the bundle that was named, else the one that is published.

    Args:
        settings: Where the store is.
        run: A run whose bundle is meant, published or not: its name, the start of it, or its tag.
        bundle: A bundle's folder or `hf://` address, which only loading it can check.

    Raises:
        PipelineError: There is no such run or folder, nothing is published, or both were named.
    """
    if run is not None and bundle is not None:
        raise PipelineError("--run and --bundle each name an assistant", "give one of them")
    if bundle is not None:
        _check_folder(bundle)
        return bundle
    store = settings.open_store()
    return published_manifest(store) if run is None else _of_run(store, run)


def start_address(settings: Settings, start: str) -> str:
    """Return the path or address of the bundle that `--start` names.

    Args:
        settings: Where the store is.
        start: A bundle's folder, URL or `hf://` address, or a run of the store: its name, the
            start of it, or its tag.

    Raises:
        PipelineError: There is no such folder and no such run, or the run's bundle is gone.
    """
    if "://" in start or Path(start).expanduser().exists():
        return start
    if start.startswith(("/", "~", ".")):
        raise PipelineError(f"No such folder: {start}", "`phivision export DIR` writes a bundle")
    store = settings.open_store()
    artifact = store.artifact(_of_run(store, start))
    return artifact.address


def _of_run(store: ArtifactStore, name: str) -> Manifest:
    record = find_run(store, name)
    made = record["stages"].get(STAGE)
    manifest = store.find(STAGE, made["fingerprint"]) if made else None
    if manifest is None:
        raise PipelineError(
            f"the assistant of run {record['run']} is gone", "make it again with that run's recipe"
        )
    return manifest


def _check_folder(bundle: str) -> None:
    if bundle.startswith(HUB):
        return
    if not Path(bundle).is_dir():
        raise PipelineError(f"No such folder: {bundle}", "`phivision export DIR` writes a bundle")
    if not (Path(bundle) / "bundle.json").is_file():
        raise PipelineError(
            f"not a bundle: {bundle} has no bundle.json", "`phivision export DIR` writes one"
        )
