"""Files in a store and its work folder that are not ours: `gc` counts them and leaves them."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from storage.filesystem import LocalFiles
from storage.layout import (
    CACHED,
    DOWNLOAD,
    IN_WORKSPACE,
    LOCK,
    STAMP,
    WORKSPACE,
    is_ours,
    is_rest,
)
from storage.store.survey import Survey

_SHARED = ("downloads", "locks", "workspaces")  # what `gc` cleans in a work folder elsewhere


def strangers(survey: Survey) -> list[str]:
    """Return the names of other people's files in a store, sorted.

    Names are relative to the store, or to the work folder where that is elsewhere. A symbolic
    link counts as one file, whatever it points to.
    """
    return sorted({*_in_store(survey), *_in_work(survey)})


def _in_store(survey: Survey) -> Iterator[str]:
    files, attempts = survey.store.files, set(survey.attempts)
    stored: dict[str, Callable[[str], bool]] = {}
    for name in _names(survey):
        folder = "/".join(name.split("/")[:3])
        if files.is_linked(name):
            yield name
        elif folder in attempts:
            if folder not in stored:
                stored[folder] = survey.stored_in(folder)
            if not stored[folder](name.removeprefix(f"{folder}/")):
                yield name
        elif not is_ours(name) and not is_rest(name):
            yield name


def _names(survey: Survey) -> Iterator[str]:
    """Yield every file of a store, except those in the work folder."""
    files = survey.store.files
    if isinstance(files, LocalFiles):
        for path in _files(files.root, survey.work.absolute()):
            yield path.relative_to(files.root).as_posix()
        return
    for top in files.list(""):
        for name in files.states(top.lstrip("/")):
            yield f"{top}/{name}".strip("/")


def _in_work(survey: Survey) -> Iterator[str]:
    work, files = survey.work.absolute(), survey.store.files
    is_inside = isinstance(files, LocalFiles) and work.is_relative_to(files.root)
    root = files.root if isinstance(files, LocalFiles) and is_inside else work
    if survey.is_work_outside:
        yield work.relative_to(root).as_posix()
        return
    for top in (work,) if is_inside else map(work.joinpath, _SHARED):
        for path in _files(top):
            if path.is_symlink() or not _is_work(path.relative_to(work).parts):
                yield path.relative_to(root).as_posix()


def _is_work(parts: tuple[str, ...]) -> bool:
    """Return whether a file of the work folder is ours, by the parts of its name."""
    match parts:
        case ("workspaces", name, inner, *_):
            return bool(WORKSPACE.fullmatch(name) and IN_WORKSPACE.fullmatch(inner))
        case ("locks", name):
            return LOCK.fullmatch(name) is not None
        case ("downloads", name, _, *_):
            return DOWNLOAD.fullmatch(name) is not None
        case ("cache", "stamps", name):
            return STAMP.fullmatch(name) is not None
        case ("cache", "files", name, *_):
            return CACHED.fullmatch(name) is not None
        case ("wandb", _, *_):
            return True
    return False


def _files(root: Path, skipped: Path | None = None) -> Iterator[Path]:
    """Yield files and links below a folder; unreadable folders are not ours and are skipped."""
    for folder, folders, files in os.walk(root):
        yield from (Path(folder, name) for name in files)
        yield from (path for name in folders if (path := Path(folder, name)).is_symlink())
        folders[:] = [name for name in folders if Path(folder, name) != skipped]
