"""The manifest: the record that makes an artifact visible, written last and whole."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

SCHEMA = 1


class FileRecord(BaseModel):
    """One file of an artifact."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(description="Path inside the artifact, with forward slashes.")
    bytes: int = Field(description="Size of the file.")
    sha256: str = Field(description="Hash of its content.")


class Manifest(BaseModel):
    """What went into an artifact (fingerprint, payload) and what came out (digest, files)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    manifest: int = Field(default=SCHEMA, description="Version of this schema.")
    stage: str
    fingerprint: str = Field(description="Hash of the payload.")
    payload: dict[str, Any] = Field(description="Recipe part, code, inputs: all that went in.")
    digest: str = Field(description="Hash of the names and contents of the files.")
    attempt: str = Field(description="Folder of this attempt, below artifacts/stage/fingerprint.")
    files: tuple[FileRecord, ...]
    summary: dict[str, Any] = Field(description="Figures of the stage, for people.")
    packages: dict[str, str] = Field(description="Versions of the libraries that shape outputs.")
    commit: str = Field(description="Git commit of the code, empty outside a checkout.")
    created: float = Field(description="Seconds since 1970, UTC.")
    seconds: float = Field(description="How long the stage worked.")
    accepted: str = Field(default="", description="Fingerprint this was adopted from, if it was.")

    @property
    def folder(self) -> str:
        """Where the files lie, relative to the root of the store."""
        return f"artifacts/{self.stage}/{self.attempt}"


def canonical(value: object) -> bytes:
    """Return the one JSON text of a value: sorted keys, no blanks, UTF-8.

    Raises:
        TypeError: The value holds something JSON has no honest form for.
        ValueError: The value holds NaN or an infinity.
    """
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()


def fingerprint_of(payload: Mapping[str, object]) -> str:
    """Return the SHA-256 of everything that went into a stage, in hexadecimal."""
    return hashlib.sha256(canonical(payload)).hexdigest()


def digest_of(files: Sequence[FileRecord]) -> str:
    """Return the SHA-256 over the sorted names and content hashes of the files that came out."""
    pairs = sorted((record.name, record.sha256) for record in files)
    return hashlib.sha256(canonical(pairs)).hexdigest()
