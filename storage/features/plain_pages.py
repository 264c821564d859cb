"""Byte offsets of a Parquet column's values in its file, if they are in uncompressed PLAIN pages.

The invariant: a layout that is not known to the last byte is refused, so that reading by offset
gives the right bytes or none; pyarrow can read the rest. Page checksums are not verified.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

_STRUCT = 12  # Thrift's number of the type
_UNCOMPRESSED = _DATA_PAGE = _PLAIN = 0


class OtherLayoutError(Exception):
    """Why values of a file cannot be addressed by offset."""


class Page(NamedTuple):
    """The body of a data page, its levels included.

    Attributes:
        start: Its first byte in the file.
        bytes: Its size.
        values: How many values it holds, nulls among them.
    """

    start: int
    bytes: int
    values: int


def plain_pages(view: memoryview, column: int) -> Iterator[Page]:
    """Yield the page of a column in each row group that has rows.

    Args:
        view: The whole file.
        column: Number of the column, in the order of its leaves.

    Raises:
        OtherLayoutError: A column chunk is not one uncompressed PLAIN page, or is damaged.
    """
    try:
        # Not through pyarrow: it ends the process when a damaged footer names an unknown codec.
        size = int.from_bytes(view[-8:-4], "little")
        footer, _ = _thrift(view[-8 - size : -8], 0)
        for group in footer[4]:
            chunk = group[1][column][3]
            if chunk[5]:
                yield _page(chunk, view)
    except (LookupError, TypeError, AttributeError) as error:
        raise OtherLayoutError(f"a header that is damaged ({error})") from None


def _page(chunk: dict[int, Any], view: memoryview) -> Page:
    """Return the one page of a column chunk.

    Numbers of fields are those of parquet.thrift: in ColumnMetaData 4 codec, 5 num_values,
    7 total_compressed_size, 9 data_page_offset, 11 dictionary_page_offset; in PageHeader 1 type,
    2 and 3 sizes, 5 data_page_header with 1 num_values and 2 encoding.
    """
    values, start = chunk[5], chunk[9]
    if chunk[4] != _UNCOMPRESSED or 11 in chunk:
        raise OtherLayoutError("compression or a dictionary")
    header, body = _thrift(view, start)
    page, size = header.get(5, {}), header.get(2)
    layout = (header.get(1), header.get(3), page.get(1), page.get(2))
    if layout != (_DATA_PAGE, size, values, _PLAIN):
        raise OtherLayoutError("a row group that is not one PLAIN page")
    if body + size != start + chunk[7] or start + chunk[7] > len(view):
        raise OtherLayoutError("sizes that disagree")
    return Page(body, size, values)


def _thrift(view: memoryview, at: int, kind: int = _STRUCT) -> tuple[Any, int]:
    """A value in Thrift's compact protocol, and where it ends; a struct is a dict by field number.

    Only types that our own files hold are read: integers, strings, lists and structs.
    """
    match kind:
        case 4 | 5 | 6:
            value, at = _varint(view, at)
            return (value >> 1) ^ -(value & 1), at
        case 8:
            size, at = _varint(view, at)
            return bytes(view[at : at + size]), at + size
        case 9:
            (size, kind), at = divmod(view[at], 16), at + 1
            size, at = _varint(view, at) if size == 15 else (size, at)
            items = []
            for _ in range(size):
                item, at = _thrift(view, at, kind)
                items.append(item)
            return items, at
        case 12:
            fields: dict[int, Any] = {}
            while (lead := view[at]) > 15:  # distance from the last field's number, and type
                number = max(fields, default=0) + (lead >> 4)
                fields[number], at = _thrift(view, at + 1, lead & 15)
            if lead == 0:
                return fields, at + 1
    raise OtherLayoutError(f"Thrift type {kind} in a header")


def _varint(view: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while view[at] > 127:
        value |= (view[at] & 127) << shift
        shift, at = shift + 7, at + 1
    return value | view[at] << shift, at + 1
