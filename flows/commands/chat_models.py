"""The assistants that a chat offers: the one that is asked for, and the others of its store."""

import sys

from flows.chat.limits import Limits
from flows.chat.models import Models, Offer, only
from flows.commands.assistant import open_assistant
from model.assistant import Assistant
from model.errors import ModelError
from pipeline.publishing.gate import STAGE, published_manifest
from pipeline.settings import Settings
from storage.errors import ExpectedError
from storage.store.artifacts import ArtifactStore
from storage.store.manifest import Manifest
from storage.store.published import published, read_history
from storage.store.runs import read_refs, read_runs

NEWEST = 50  # runs that are looked through; each costs one read of the store


def models_to_chat(settings: Settings, bundle: Manifest | str | None) -> Models:
    """Return the assistant that is asked for, loaded, and the others of its store.

    Args:
        settings: Store and device.
        bundle: A bundle's folder or `hf://` address, which is offered alone, or the manifest of one
            in the store; None is the published one.

    Raises:
        PipelineError: Nothing is published yet.
    """
    if isinstance(bundle, str):
        return only(open_assistant(settings, bundle))
    store = settings.open_store()
    first = published_manifest(store) if bundle is None else bundle
    runs = _runs(store, first)
    offers = {
        run: Offer(label, lambda chosen=manifest: _load(settings, chosen))
        for run, label, manifest in runs
    }
    return Models(offers, Limits().models, open_assistant(settings, first))


def _runs(store: ArtifactStore, first: Manifest) -> list[tuple[str, str, Manifest]]:
    """Return name, label and manifest of each assistant, the first one first, then the newest."""
    now, tags = published(read_history(store)), read_refs(store)
    runs: dict[str, tuple[str, str, Manifest]] = {}
    for record in read_runs(store)[:NEWEST]:
        fingerprint = record["stages"].get(STAGE, {}).get("fingerprint", "")
        manifest = store.find(STAGE, fingerprint) if fingerprint not in runs else None
        if manifest is None:  # seen, never made, or removed by gc
            continue
        is_published = now is not None and now.fingerprint == fingerprint
        marks = ["published"] if is_published else []
        marks += sorted(tag for tag, run in tags.items() if run == record["run"])
        name = str(manifest.summary.get("name", "")).removeprefix("phivision-")
        words = [record["run"], name, f"({', '.join(marks)})" if marks else ""]
        label = " ".join(filter(None, words))
        runs[fingerprint] = (record["run"], label, manifest)
    # The record of an old run may be gone while its assistant is still published.
    own = runs.pop(first.fingerprint, ("published", "published", first))
    return [own, *runs.values()]


def _load(settings: Settings, manifest: Manifest) -> Assistant:
    try:
        return open_assistant(settings, manifest)
    except ExpectedError as error:
        print(error, file=sys.stderr, flush=True)  # a visitor is not shown the store's paths
        raise ModelError("this model cannot be loaded: the server's terminal says why") from None
