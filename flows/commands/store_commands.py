"""Commands that maintain a store: verify, gc, accept and tag."""

from typing import TYPE_CHECKING

from flows.printing import print_rows, when
from pipeline.errors import PipelineError
from pipeline.recipe.recipe import Recipe
from pipeline.settings import Settings
from storage.store.artifacts import ArtifactStore
from storage.store.mark import require_store

if TYPE_CHECKING:
    from storage.store.garbage import Garbage

_SHOWN = 8  # damaged files named per artifact


def verify_store(store: ArtifactStore) -> None:
    """Hash every committed file and print what is damaged.

    Raises:
        PipelineError: An artifact is damaged, and now marked so that `run` makes it again. Or the
            store is empty: a misspelt path must not pass for a healthy store.
    """
    from pipeline.progress import ConsoleReporter
    from storage.store.verify import committed, verify

    known = committed(store)
    count = len(known.manifests) + len(known.unreadable)
    if not count:
        require_store(store.files)
        raise PipelineError(f"no artifact is in {store.uri}", "check --store and PHIVISION_STORE")
    with ConsoleReporter().track("verify (bytes)", known.bytes) as tick:
        damages = verify(store, known, tick)
    if not damages:
        print(f"{count} artifacts, {known.bytes / 1e6:,.1f} MB: every file is as committed")
        return
    rows = []
    for damage in damages:
        shown = [f"{name} {fault}".strip() for name, fault in damage.faults.items()]
        more = f" and {len(shown) - _SHOWN} more" if len(shown) > _SHOWN else ""
        rows.append([damage.stage, damage.fingerprint[:12], "; ".join(shown[:_SHOWN]) + more])
    print_rows(["stage", "fingerprint", "damage"], rows)
    raise PipelineError(
        f"{len(damages)} of {count} artifacts are damaged",
        "`phivision run` with the recipe that made them makes only those again",
    )


def collect_garbage(
    store: ArtifactStore,
    settings: Settings,
    keep: int,
    days: float,
    *,
    dry_run: bool,
    downloads: bool = False,
) -> None:
    """Remove what nothing needs, or print what would be removed; files not phivision's stay.

    Raises:
        PipelineError: Downloads are to be removed while a pipeline may be reading them.
        StorageError: The place is not a store, or cannot be read.
    """
    from storage.names import shown as printable
    from storage.store.foreign_files import strangers
    from storage.store.garbage import garbage_of
    from storage.store.survey import BUSY_GRACE, DAY, is_busy, take_survey

    if days * DAY < BUSY_GRACE and is_busy(store, settings.work):
        print("a pipeline is running: what was used in the last 7 days stays")
    survey = take_survey(store, settings.work, keep=keep, grace=days * DAY)
    items = garbage_of(survey)
    if downloads and not survey.is_work_outside:
        items += _downloads(store, settings)
    shown = [garbage for garbage in items if garbage.kind != "note"]
    print_rows(["kind", "MB", "place"], [[g.kind, f"{g.bytes / 1e6:,.1f}", g.name] for g in shown])
    if not dry_run:
        for garbage in items:
            garbage.remove()
    verb = "would be removed" if dry_run else "removed"
    size = sum(garbage.bytes for garbage in items) / 1e6
    done = f"{len(items)} items, {size:,.1f} MB, {verb} from" if items else "nothing to remove in"
    print(f"{done} {store.uri}")
    if others := strangers(survey):
        example = printable(others[0])
        print(f"{len(others)} other files are not phivision's and stay, such as {example}")


def _downloads(store: ArtifactStore, settings: Settings) -> list["Garbage"]:
    from storage.fetch.download_cache import FOLDER, remove_all, size_of
    from storage.store.garbage import Garbage
    from storage.store.survey import is_busy

    if is_busy(store, settings.work):
        raise PipelineError(
            "a pipeline is running and may be reading its downloads", "try again when it has ended"
        )
    size, place = size_of(settings.work), str(settings.work / FOLDER)
    if not size:
        return []
    return [Garbage("downloads", place, size, lambda: remove_all(settings.work))]


def accept_stages(
    name: str, recipe: Recipe, store: ArtifactStore, made_as: str, *, every: bool
) -> None:
    """Adopt artifacts under their stages' present fingerprints and print what changed since.

    Raises:
        PipelineError: Not exactly one of a stage and `every` is given, or no artifact fits.
    """
    from pipeline.engine.accept import accept, accept_all

    if every is bool(name) or (every and made_as):
        raise PipelineError("name a stage, or give --all, which excludes --made-as")
    adoptions = (
        accept_all(recipe, store) if every else [accept(name, recipe, store, made_as=made_as)]
    )
    accepted = False
    for adoption in adoptions:
        accepted, manifest = True, adoption.manifest
        print(
            f"{manifest.stage}: digest {manifest.digest[:12]}, made as {manifest.accepted[:12]}, "
            f"adopted as {manifest.fingerprint[:12]} ({'; '.join(adoption.differences)})"
        )
    if not accepted:
        print("every stage is fresh: there is nothing to accept")


def tag_run(store: ArtifactStore, name: str, run: str) -> None:
    """Give a run a name of its own; `gc` keeps what it reaches.

    Raises:
        PipelineError: The name is not allowed, or the run does not exist.
    """
    from pipeline.engine.runs import find_run
    from storage.layout import TAG
    from storage.store.runs import LATEST, write_ref

    if not TAG.fullmatch(name) or name == LATEST:
        raise PipelineError(f"'{name}' cannot name a run", "use letters, digits, '.', '-' and '_'")
    name_of_run = find_run(store, run)["run"]
    write_ref(store, name, name_of_run)
    print(f"{name} is now run {name_of_run}")


def print_published(store: ArtifactStore) -> None:
    """Print every decision about publication, newest first; `*` marks the current assistant."""
    from storage.store.published import published, read_history

    history = read_history(store)
    if not history:
        print(f"nothing was ever published in {store.uri}")
        return
    now = published(history)
    rows = [
        ["*" if entry is now else "", entry.number, when(entry.created), entry.action, entry.run,
         entry.digest[:12], entry.reason]
        for entry in history
    ]  # fmt: skip
    print_rows(["", "no", "when (UTC)", "decision", "run", "digest", "why"], rows)
