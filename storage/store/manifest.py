"""The manifest: the record that makes an artifact visible, written last and whole.

A manifest contains its own checksum, so that damage is detected. Every schema, future ones too,
computes that checksum in the same way: only so can a manifest of another version be distinguished
from a damaged one, which is made again.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from storage.errors import StorageError
from storage.names import name_fault

SCHEMA = 1


class DamagedManifestError(StorageError):
    """The bytes are not those of a manifest that was committed under this name."""


class UnknownManifestError(StorageError):
    """A manifest of a schema that this version does not know; it is left unchanged."""


class FileRecord(BaseModel):
    """One file of an artifact."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(description="Path inside the artifact, with forward slashes.")
    bytes: int = Field(ge=0, description="Size of the file.")
    sha256: str = Field(description="Hash of its content.", pattern=r"^[0-9a-f]{64}$")

    @field_validator("name")
    @classmethod
    def _stays_inside(cls, name: str) -> str:
        # The name becomes a path of the local cache, and a store may be untrusted.
        if fault := name_fault(name):
            raise ValueError(fault)
        return name


class Manifest(BaseModel):
    """What went into an artifact (fingerprint, payload) and what came out (digest, files)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    manifest: int = Field(default=SCHEMA, description="Version of this schema.")
    stage: str = Field(pattern=r"^\w+$")
    fingerprint: str = Field(description="Hash of the payload.", pattern=r"^[0-9a-f]{64}$")
    payload: dict[str, Any] = Field(description="Recipe part, code, inputs: all that went in.")
    digest: str = Field(
        description="Hash of the names and contents of the files.", pattern=r"^[0-9a-f]{64}$"
    )
    attempt: str = Field(
        description="Folder of this attempt, below artifacts/stage.", pattern=r"^[0-9a-z-]+$"
    )
    files: tuple[FileRecord, ...]
    summary: dict[str, Any] = Field(description="Figures of the stage, for people.")
    packages: dict[str, str] = Field(description="Versions of the libraries that shape outputs.")
    commit: str = Field(description="Git commit of the code, empty outside a checkout.")
    created: float = Field(description="Seconds since 1970, UTC.")
    seconds: float = Field(description="How long the stage worked.")
    machine: dict[str, str] = Field(
        default_factory=dict,
        description="Device and CPU threads that computed it; others may give other last bits.",
    )
    accepted: str = Field(default="", description="Fingerprint this was adopted from, if it was.")
    replaced: str = Field(
        default="",
        description="Other digest that the same fingerprint gave before: the stage is not "
        "deterministic.",
    )

    @property
    def folder(self) -> str:
        """Where the files are, relative to the root of the store."""
        return f"artifacts/{self.stage}/{self.attempt}"


def canonical(value: object) -> bytes:
    """Return the canonical JSON of a value: sorted keys, no whitespace, UTF-8.

    Raises:
        TypeError: The value holds something that JSON cannot represent faithfully, such as a key
            that is not text.
        ValueError: The value holds NaN or an infinity, or text that is not valid Unicode.
    """
    _refuse_odd_keys(value)
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()


def fingerprint_of(payload: Mapping[str, object]) -> str:
    """Return the SHA-256 of everything that went into a stage, in hexadecimal.

    Of `code`, digests by path, only the digests count: a file can be moved.
    """
    code = payload.get("code")
    if isinstance(code, Mapping):
        payload = {**payload, "code": sorted(code.values())}
    return hashlib.sha256(canonical(payload)).hexdigest()


def digest_of(files: Sequence[FileRecord]) -> str:
    """Return the SHA-256 over the sorted names and content hashes of the files that came out."""
    pairs = sorted((record.name, record.sha256) for record in files)
    return hashlib.sha256(canonical(pairs)).hexdigest()


def encode(manifest: Manifest) -> bytes:
    """Return a manifest as readable JSON, with a checksum of its own content as `check`."""
    # By way of JSON: a NaN among the figures becomes null, and what is hashed is what is read.
    body = json.loads(manifest.model_dump_json())
    return json.dumps({**body, "check": _check(body)}, indent=1, ensure_ascii=False).encode()


def decode(data: bytes, name: str) -> Manifest:
    """Return the manifest in the content of `name` (`manifests/<stage>/<fingerprint>.json`).

    Raises:
        UnknownManifestError: It is intact and has another schema.
        DamagedManifestError: It is truncated, altered, or belongs under another name.
    """
    try:
        body = json.loads(data)
        version, check = body.get("manifest"), body.pop("check", "")
        whole = check == _check(body)
    except (ValueError, AttributeError, RecursionError):
        raise DamagedManifestError(f"{name} is not a manifest", _REMEDY) from None
    if not whole:
        raise DamagedManifestError(f"{name} was altered: its checksum does not match", _REMEDY)
    if version != SCHEMA:
        raise UnknownManifestError(
            f"{name} has manifest schema {version}, this phivision reads {SCHEMA}",
            "use the phivision that wrote this store, or a new store",
        )
    try:
        manifest = Manifest.model_validate(body)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(step) for step in first["loc"])
        raise DamagedManifestError(
            f"{name} is not a manifest: {place}: {first['msg']}", _REMEDY
        ) from None
    if not name.endswith(f"{manifest.stage}/{manifest.fingerprint}.json"):
        raise DamagedManifestError(f"{name} is the manifest of another artifact", _REMEDY)
    return manifest


_REMEDY = "`phivision run` makes the artifact again"


def _check(body: Mapping[str, object]) -> str:
    return hashlib.sha256(canonical(body)).hexdigest()


def _refuse_odd_keys(value: object) -> None:
    """Raise for keys that `json` would silently turn into text, which would merge 1 and "1"."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str):
                raise TypeError(f"key {key!r} is not text")
            _refuse_odd_keys(item)
    elif isinstance(value, list | tuple):
        for item in value:
            _refuse_odd_keys(item)
