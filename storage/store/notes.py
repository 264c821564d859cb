"""Small files about removed items, and leftovers of killed writes: garbage, too."""

import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from storage.filesystem import LocalFiles, walk
from storage.layout import ATTEMPT, FORMS, is_ours, is_rest
from storage.store.artifacts import ArtifactStore
from storage.store.survey import DAY, Survey

Note = tuple[str, Callable[[], None]]  # its name, and what removes it


def useless_notes(survey: Survey) -> Iterator[Note]:
    """Yield notes about manifests, files and runs that no longer exist."""
    store = survey.store
    keys = {f"{stage}/{fingerprint}" for stage, fingerprint in survey.known.manifests}
    attempts = {folder.removeprefix("artifacts/") for folder in survey.attempts}
    for kind, alive in (("used", keys), ("damaged", attempts), ("attempts", attempts)):
        for folder in store.list(kind):
            for name in _ours(store, folder):
                about = name.removeprefix(f"{kind}/").removesuffix(".json")
                if about in alive:
                    continue
                # A listing is written before the first file of its attempt.
                if kind != "attempts" or store.files.modified(name) <= survey.horizon:
                    yield name, partial(_remove_note, survey, name)
    runs = {Path(name).stem for name in store.list("runs")} | {"dataset"}
    for name in _ours(store, "reports"):
        if Path(name).stem not in runs:
            yield name, partial(_remove_note, survey, name)
    if isinstance(store.files, LocalFiles):
        ends = {folder.rpartition("/")[2] for folder in survey.attempts}
        for key in filter(ATTEMPT.fullmatch, store.stamps.keys() - ends):
            yield f"stamps/{key}", partial(store.stamps.forget, key)


def rests(survey: Survey) -> Iterator[Note]:
    """Yield leftovers of killed writes on a disk; those of files are removed with their attempt."""
    files = survey.store.files
    if not isinstance(files, LocalFiles):
        return
    below = [path for top in FORMS if top != "artifacts" for path in walk(files.path(top))]
    for path in (*files.root.glob(".*"), *below):
        name = path.relative_to(files.root).as_posix()
        if not is_rest(name) or files.is_linked(name) or not path.is_file():
            continue
        if files.modified(name) < time.time() - DAY:
            yield name, partial(files.remove, name)


def _ours(store: ArtifactStore, folder: str) -> list[str]:
    names = filter(is_ours, store.list(folder))
    return [name for name in names if not store.files.is_linked(name)]


def _remove_note(survey: Survey, name: str) -> None:
    """Remove a note, unless its subject has appeared since it was found."""
    store = survey.store
    kind, _, about = name.partition("/")
    about = about.rpartition(".")[0]
    if kind in ("damaged", "attempts"):
        if not store.files.states(f"artifacts/{about}") and not survey.is_disturbed:
            store.files.remove(name)
        return
    subjects = {"used": f"manifests/{about}.json", "reports": f"runs/{about}.json"}
    if store.read(subjects[kind]) is None:
        store.files.remove(name)
