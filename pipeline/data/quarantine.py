"""The bytes of images that could not be used, for people to look at; no stage reads them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from storage.tables import write_table

FILE = "quarantine.parquet"
LARGEST = 4 * 2**20  # bytes; a larger file is only named
MOST = 64  # files, 256 MiB at most; the first ones show what is wrong with a source
_ROWS = pa.schema([("record", pa.string()), ("file", pa.string()), ("data", pa.binary())])


class Quarantine:
    """Collects the bytes of unusable images; a dataset without any gets no file."""

    def __init__(self) -> None:
        self._rows: list[dict[str, Any]] = []

    def add(self, record: Mapping[str, Any], data: bytes) -> None:
        """Keep the bytes of an image record, if there are any and not too many."""
        if 0 < len(data) <= LARGEST and len(self._rows) < MOST:
            row = {"record": str(record["id"]), "file": record["file_name"], "data": data}
            self._rows.append(row)

    def write(self, folder: Path) -> None:
        """Write the file, unless there is nothing to keep."""
        if self._rows:
            write_table(folder / FILE, self._rows, _ROWS)
