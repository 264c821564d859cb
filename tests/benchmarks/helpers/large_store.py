"""A store of any number of runs of the preset `demo`, with small files and true manifests.

Files are written straight to their places, without the syncs of a commit, so that a hundred
thousand are there in half a minute. The newest run is exactly what the preset would make now, so
that `plan` finds it fresh.
"""

import hashlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.engine.dag import BY_NAME, DAG
from pipeline.engine.materialize import payload_of
from pipeline.engine.runs import run_name
from pipeline.recipe.presets import preset
from storage.layout import MARK, listing_name
from storage.store.manifest import FileRecord, Manifest, digest_of, encode, fingerprint_of

DAY = 86_400.0
HOUR = 3600.0


def objects(manifests: int, files: int) -> Iterator[tuple[str, bytes]]:
    """Yield name and content of everything in a store, manifests behind their files.

    Args:
        manifests: How many there are, about: whole runs.
        files: Files of all artifacts, about.
    """
    yield MARK, json.dumps({"format": "phivision store", "layout": 1}).encode()
    runs, each = max(manifests // len(DAG), 1), max(files // manifests, 1)
    now = time.time()
    for number in range(runs):
        created = now - (runs - 1 - number) * HOUR - 30 * DAY * (number < runs - 1)
        yield from _run(number, runs, each, created)
    yield "refs/latest", _last_name(runs, each).encode()


def _last_name(runs: int, each: int) -> str:
    return run_name(_manifests(runs - 1, runs, each, 0.0))


def _run(number: int, runs: int, each: int, created: float) -> Iterator[tuple[str, bytes]]:
    made = _manifests(number, runs, each, created)
    for manifest in made:
        for record in manifest.files:
            yield f"{manifest.folder}/{record.name}", _content(number, record.name)
        listing = {"files": [record.name for record in manifest.files]}
        yield listing_name(manifest.stage, manifest.attempt), json.dumps(listing).encode()
        yield f"manifests/{manifest.stage}/{manifest.fingerprint}.json", encode(manifest)
    record = {
        "run": run_name(made),
        "number": number + 1,
        "created": created,
        "seconds": 60.0,
        "recipe": preset("demo").model_dump(mode="json"),
        "stages": {m.stage: {"fingerprint": m.fingerprint, "digest": m.digest} for m in made},
        "made": [m.stage for m in made],
    }
    yield f"runs/{record['run']}.json", json.dumps(record, indent=1).encode()


def _manifests(number: int, runs: int, each: int, created: float) -> list[Manifest]:
    """Return the manifests of one run; all but the last run are of other seeds."""
    recipe = preset("demo")
    digests: dict[str, str] = {}
    found = []
    for stage in DAG:
        inputs = {name: digests[name] for name in sorted(stage.inputs_with(recipe))}
        payload = _payloads(stage.name) | {"inputs": inputs}
        if number < runs - 1:
            payload["recipe"] = {**payload["recipe"], "seed": 1000 + number}
        records = tuple(_record(number, name) for name in _names(stage.name, each))
        fingerprint = fingerprint_of(payload)
        digests[stage.name] = digest_of(records)
        found.append(
            Manifest(
                stage=stage.name,
                fingerprint=fingerprint,
                payload=payload,
                digest=digests[stage.name],
                attempt=f"{fingerprint[:16]}-{number:08x}",
                files=records,
                summary={"images": 1181, "examples": 9000},
                packages={},
                commit="",
                created=created,
                seconds=7.0,
                machine={"device": "cpu", "threads": "2"},
            )
        )
    return found


_KNOWN: dict[str, dict[str, Any]] = {}


def _payloads(stage: str) -> dict[str, Any]:
    """Return what `plan` would find, but for the inputs' digests."""
    if stage not in _KNOWN:
        nothing = dict.fromkeys(BY_NAME[stage].inputs_with(preset("demo")), "")
        _KNOWN[stage] = payload_of(BY_NAME[stage], preset("demo"), nothing)
    return dict(_KNOWN[stage])


def _names(stage: str, each: int) -> list[str]:
    if stage == "evaluate":
        return ["metrics.json", *(f"part-{n:05d}.bin" for n in range(each - 1))]
    return [f"part-{n:05d}.bin" for n in range(each)]


def _content(number: int, name: str) -> bytes:
    return b"[]" if name == "metrics.json" else f"{number} {name} ".encode() * 8


def _record(number: int, name: str) -> FileRecord:
    data = _content(number, name)
    return FileRecord(name=name, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


def write_store(root: Path, manifests: int, files: int) -> int:
    """Write a store on this disk, and return how many files it has."""
    count, folders = 0, set[Path]()
    for name, data in objects(manifests, files):
        path = root / name
        if path.parent not in folders:
            path.parent.mkdir(parents=True, exist_ok=True)
            folders.add(path.parent)
        path.write_bytes(data)
        count += 1
    return count
