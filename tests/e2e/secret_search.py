"""Searching bytes for secrets that must not be there, as they are or in base64."""

import base64
from collections.abc import Iterable, Mapping
from pathlib import Path


def traces(data: bytes, secrets: Mapping[str, str]) -> list[str]:
    """Return the names of the secrets that some bytes hold."""
    found = []
    for name, secret in secrets.items():
        plain = secret.encode()
        # Base64 of a text inside another begins at one of three offsets.
        coded = [base64.b64encode(bytes(n) + plain)[4 * (n > 0) + 2 : -4] for n in range(3)]
        if any(form in data for form in (plain, *coded)):
            found.append(name)
    return found


def files_with(folders: Iterable[Path], secrets: Mapping[str, str]) -> dict[str, list[str]]:
    """Return the files below some folders that hold a secret, with its name."""
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    return {str(path): found for path in files if (found := traces(path.read_bytes(), secrets))}
