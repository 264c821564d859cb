"""The names of files in a store and its work folder: a file with any other name is not ours.

Code that removes or adopts files checks them here first. A place may also hold other people's
files, with similar names, so every pattern is exact: folder, characters and their number.
"""

import re

_STAGE = r"[A-Za-z0-9_]+"
_START = r"[0-9a-f]{16}"  # of a fingerprint, in the names of attempts, workspaces and locks
_RANDOM = r"[0-9a-f]{8}"
_ATTEMPT = rf"{_START}-{_RANDOM}"
_RUN = r"[0-9a-f]{10}"
_PRESENCE = r"run-[0-9a-f]{32}"
_KEY = rf"{_STAGE}-{_START}"
_TAG = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}"

MARK = "phivision-store.json"  # in every store, see `storage.store.mark`
ATTEMPT = re.compile(_ATTEMPT)
RUN = re.compile(_RUN)
TAG = re.compile(_TAG)
NUMBERED = re.compile(r"\d{8}\.json")  # one object of a lease
WORKSPACE = re.compile(rf"{_KEY}(\.{_RANDOM})?")
IN_WORKSPACE = re.compile(rf"replaces|scratch|out-{_RANDOM}")
LOCK = re.compile(rf"({WORKSPACE.pattern}|{_PRESENCE})\.lock")
CACHED = re.compile(r"[0-9a-f]{32}(\.\w+)*")  # what `storage.store.readcache` keeps of an artifact
STAMP = re.compile(rf"({_ATTEMPT}|{CACHED.pattern})\.(json|[0-9a-f]+\.tmp)")
DOWNLOAD = re.compile(r"[0-9a-f]{16}")  # a folder of `storage.fetch.download_cache`

# Files below each folder of a store.
FORMS = {
    folder: re.compile(form, re.DOTALL)
    for folder, form in {
        "artifacts": rf"{_STAGE}/{_ATTEMPT}/.+",
        "attempts": rf"{_STAGE}/{_ATTEMPT}\.json",
        "damaged": rf"{_STAGE}/{_ATTEMPT}\.json",
        "leases": rf"({_KEY}|{_PRESENCE})/{NUMBERED.pattern}",
        "manifests": rf"{_STAGE}/[0-9a-f]{{64}}\.json",
        "published": r"\d{6,}\.json",
        "refs": _TAG,
        "reports": rf"({_RUN}|dataset)\.html",
        "runs": rf"{_RUN}\.json",
        "used": rf"{_STAGE}/[0-9a-f]{{64}}\.json",
    }.items()
}
LEASE = re.compile(rf"leases/({_KEY}|{_PRESENCE})")
_PROBE = re.compile(rf"\.probe(\.{_RANDOM})?\.tmp")
_TEMPORARY = re.compile(rf"\.(.+)\.{_RANDOM}\.tmp", re.DOTALL)


def is_ours(name: str) -> bool:
    """Return whether a store uses a name for a file; names are relative to its root."""
    folder, slash, rest = name.partition("/")
    if not slash:
        return name == MARK
    return folder in FORMS and FORMS[folder].fullmatch(rest) is not None


def is_rest(name: str) -> bool:
    """Return whether a file is a leftover of our own killed write, beside its target."""
    if _PROBE.fullmatch(name):
        return True
    target = written_as(name)
    return target is not None and (is_ours(target) or _PROBE.fullmatch(target) is not None)


def written_as(name: str) -> str | None:
    """Return the target of a temporary file, None if the name is not that of one."""
    folder, slash, last = name.rpartition("/")
    match = _TEMPORARY.fullmatch(last)
    return f"{folder}{slash}{match[1]}" if match else None


def listing_name(stage: str, attempt: str) -> str:
    """Return the name of the listing of an attempt's files."""
    return f"attempts/{stage}/{attempt}.json"
