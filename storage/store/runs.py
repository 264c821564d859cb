"""Records of finished runs: which artifacts each ended with; `refs/` names some of them.

Runs are in the order in which they were recorded: each record has a number above all existing ones.
Clocks of machines differ and can be set back; `created` is for people.
"""

import json
from contextlib import suppress
from typing import Any

from storage.errors import StorageError
from storage.layout import RUN, is_ours
from storage.store.artifacts import ArtifactStore

LATEST = "latest"


class DamagedRunError(StorageError):
    """The record of a run was truncated or altered."""


def read_runs(store: ArtifactStore) -> list[dict[str, Any]]:
    """Return the records of all finished runs, the last recorded first.

    Raises:
        StorageError: A record cannot be read.
    """
    names = _names(store)
    read = store.read_all([_place(name) for name in names])
    records = [_run(store, *each) for each in zip(names, read, strict=True)]
    # Old records without a number have 0: among them the clock decides.
    return sorted(
        (record for record in records if record is not None),
        key=lambda record: (-record["number"], -record["created"], record["run"]),
    )


def _names(store: ArtifactStore) -> list[str]:
    names = filter(is_ours, store.list("runs"))
    return [name.removeprefix("runs/").removesuffix(".json") for name in names]


def read_run(store: ArtifactStore, name: str) -> dict[str, Any] | None:
    """Return the record of one run, or None where there is none of that name.

    Raises:
        DamagedRunError: It was truncated or altered.
        StorageError: The store cannot be read.
    """
    return _run(store, name, store.read(_place(name)))


def _place(name: str) -> str:
    return f"runs/{name}.json"


def _run(store: ArtifactStore, name: str, data: bytes | None) -> dict[str, Any] | None:
    if data is None:
        return None
    try:
        record = json.loads(data)
        stages = {
            str(stage): {"fingerprint": made["fingerprint"], "digest": made["digest"]}
            for stage, made in record["stages"].items()
        }
        return {
            **record,
            "run": name,
            "number": int(record.get("number", 0)),
            "created": float(record["created"]),
            "stages": stages,
        }
    except (ValueError, TypeError, KeyError, AttributeError):
        raise DamagedRunError(
            f"{store.uri}/{_place(name)} is not the record of a run",
            "delete that one file: the artifacts do not depend on it",
        ) from None


def read_refs(store: ArtifactStore) -> dict[str, str]:
    """Return the runs that have a name, such as `latest`, by that name."""
    runs = {name: _named(store, name) for name in filter(is_ours, store.list("refs"))}
    return {name.removeprefix("refs/"): run for name, run in runs.items() if run}


def next_number(store: ArtifactStore) -> int:
    """Return the number of the run that is recorded next.

    Raises:
        StorageError: The store cannot be read.
    """
    numbers = [0]
    names = _names(store)
    for name, data in zip(names, store.read_all([_place(n) for n in names]), strict=True):
        with suppress(DamagedRunError):
            record = _run(store, name, data)
            numbers.append(record["number"] if record is not None else 0)
    return max(numbers) + 1


def write_ref(store: ArtifactStore, name: str, run: str) -> None:
    """Give a run a name, taking it from the run that had it.

    Raises:
        StorageError: A file that is not ours has the name, or the store cannot be written.
    """
    place = f"refs/{name}"
    if name != LATEST and store.read(place) is not None and not _named(store, place):
        raise StorageError(
            f"{store.uri}/{place} does not refer to a run", "choose another name: that file stays"
        )
    store.write(place, run.encode())


def _named(store: ArtifactStore, place: str) -> str:
    """Return the run that a file of `refs/` names, "" if it names none."""
    run = (store.read(place) or b"").decode(errors="replace").strip()
    return run if RUN.fullmatch(run) else ""
