"""Decoding JSON files from elsewhere: any UTF encoding, gzipped or not."""

import gzip
import io
import json
import zlib

GZIP = b"\x1f\x8b"
LARGEST = 4 * 2**30  # unpacked bytes of one file


def json_text(data: bytes) -> str:
    """Return the text of a JSON file in UTF-8, UTF-16 or UTF-32, with or without byte order mark.

    Raises:
        ValueError: It is not text in any of them, or its gzip is damaged or too large.
    """
    if data.startswith(GZIP):
        data = _unpacked(data)
    return data.decode(json.detect_encoding(data), "surrogatepass")


def _unpacked(data: bytes) -> bytes:
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as packed:
            unpacked = packed.read(LARGEST + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"the gzip is damaged or cut short ({error})") from None
    if len(unpacked) > LARGEST:
        raise ValueError(f"it has more than {LARGEST} bytes when unpacked")
    return unpacked
