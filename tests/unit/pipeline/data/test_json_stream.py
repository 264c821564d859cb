"""A list that is read record by record gives the values and the errors of `json.loads`."""

import codecs
import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.data import json_text
from pipeline.data.json_stream import ListAt, ListReader, text_chunks, without_first
from pipeline.data.llava import read_records
from pipeline.errors import PipelineError

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(), max_size=6),  # lone surrogates, too
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)
ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-16-be", "utf-32", "utf-32-le")


def pieces(text: str, size: int) -> Iterator[str]:
    return (text[start : start + size] for start in range(0, len(text), size))


def outcome(read: Any) -> str:
    """Return values or error as text, in which NaN equals NaN."""
    try:
        return repr(read())
    except (ValueError, RecursionError) as error:
        return f"refused: {error}"


def streamed(text: str, size: int) -> str:
    return outcome(lambda: list(ListReader(pieces(text, size)).records()))


@given(st.lists(values, max_size=5), st.sampled_from([None, 1]), st.booleans(), st.integers(1, 40))
@example([1.5e300, -0.0, float("-inf"), "\ud83d", "\U0001f600", 10**400], None, True, 1)
def test_any_list_gives_the_values_of_the_standard_library(
    records: list[Any], indent: int | None, is_ascii: bool, size: int
) -> None:
    text = json.dumps(records, indent=indent, ensure_ascii=is_ascii)
    assert streamed(text, size) == outcome(lambda: json.loads(text))


@given(
    st.lists(values, max_size=4),
    st.sampled_from([None, 1]),
    st.integers(0, 300),
    st.integers(0, 4),
    st.sampled_from(["", ",", ",]", "]", "[", "}", '"', "\\", "\n", "1", "-", "1e+", "NaN", "x"]),
    st.integers(1, 40),
)
@example([1], None, 2, 0, ",", 1)  # a comma behind the last value
@example([1], None, 2, 1, "", 1)  # no end
@example([1], None, 3, 0, " \n x", 2)  # something behind the end
@example([], None, 1, 1, "-", 3)
@example(["a"], None, 1, 0, "'", 5)
def test_a_damaged_list_gives_the_error_of_the_standard_library(
    records: list[Any], indent: int | None, place: int, cut: int, put: str, size: int
) -> None:
    text = json.dumps(records, indent=indent)
    place = min(place, len(text))
    text = f"[{text[1:place]}{put}{text[max(place, 1) + cut :]}"
    assert streamed(text, size) == outcome(lambda: json.loads(text))


def with_lists(value: Any, text: str, size: int) -> Any:
    """Return an outline with each list in its place, as a second reading of the text gives it."""
    if isinstance(value, ListAt):
        return list(ListReader(without_first(pieces(text, size), value.start)).first_list())
    if isinstance(value, dict):
        return {name: with_lists(each, text, size) for name, each in value.items()}
    return value


@given(
    st.dictionaries(st.text(st.characters(), max_size=3), values, max_size=4) | values,
    st.sampled_from([None, 1]),
    st.booleans(),
    st.integers(1, 40),
)
@example({"a": [1], "b": {"c": [2, [3]], "d": {"e": [4]}}, "f": []}, None, True, 1)
def test_an_outline_and_its_lists_are_the_value_of_the_standard_library(
    value: Any, indent: int | None, is_ascii: bool, size: int
) -> None:
    text = json.dumps(value, indent=indent, ensure_ascii=is_ascii)
    read = outcome(lambda: with_lists(ListReader(pieces(text, size)).outline(), text, size))
    assert read == outcome(lambda: json.loads(text))


@given(
    st.dictionaries(st.text(max_size=3), values, max_size=4),
    st.sampled_from([None, 1]),
    st.integers(0, 300),
    st.integers(0, 4),
    st.sampled_from(
        ["", ",", ",}", ":", "]", "[", "}", "{", '"', "\\", "\n", "1", "-", "1e+", "x"]
    ),
    st.integers(1, 40),
)
@example({"a": 1}, None, 7, 0, ",", 1)  # a comma behind the last value
@example({"a": 1}, None, 7, 1, "", 1)  # no end
@example({"a": 1}, None, 8, 0, " x", 2)  # something behind the end
@example({"a": 1}, None, 4, 1, "", 3)  # no colon
@example({"a": 1}, None, 1, 3, "a", 3)  # a name without quotes
def test_a_damaged_object_gives_the_error_of_the_standard_library(
    value: Any, indent: int | None, place: int, cut: int, put: str, size: int
) -> None:
    text = json.dumps(value, indent=indent)
    place = min(place, len(text))
    text = f"{text[:place]}{put}{text[place + cut :]}"
    read = outcome(lambda: with_lists(ListReader(pieces(text, size)).outline(), text, size))
    assert read == outcome(lambda: json.loads(text))


def test_only_what_a_record_needs_is_held() -> None:
    record = json.dumps({"text": "x" * 1000})
    given_out = 0

    def chunks() -> Iterator[str]:
        nonlocal given_out
        for number in range(1000):
            given_out += 1
            yield f"{',' if number else '['}{record}"
        yield "]"

    reader = ListReader(chunks()).records()
    for number, _ in enumerate(reader):
        assert given_out <= number + 4


def test_a_damaged_record_is_refused_before_the_rest_is_read() -> None:
    def chunks() -> Iterator[str]:
        yield f"[1, 2, x{' ' * 100}"
        raise AssertionError("read on")

    with pytest.raises(ValueError, match=r"Expecting value: line 1 column 8 \(char 7\)"):
        list(ListReader(chunks()).records())


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("json") / "x.json"


@given(st.text(st.characters(), max_size=30), st.sampled_from(ENCODINGS), st.integers(1, 9))
def test_every_encoding_is_read_in_pieces(path: Path, text: str, encoding: str, size: int) -> None:
    text = f'["{text.replace(chr(0), "")}"]'
    path.write_bytes(text.encode(encoding, "surrogatepass"))
    assert "".join(text_chunks(path, size)) == json_text.json_text(path.read_bytes())


@settings(max_examples=200)
@given(st.binary(max_size=12), st.integers(1, 5))
@example(codecs.BOM_UTF8 + b'["\xc3x"]', 2)
@example(b'["\xe6\xbc', 3)
@example("é".encode("utf-16")[:3], 1)
def test_bytes_that_are_no_text_are_named_by_their_place(
    path: Path, data: bytes, size: int
) -> None:
    if data.startswith(json_text.GZIP):
        return
    whole = outcome(lambda: json_text.json_text(data))
    path.write_bytes(data)
    found = outcome(lambda: "".join(text_chunks(path, size)))
    # A decoder of UTF-16 without a mark is called by its byte order in one of the two ways.
    for order in ("-le", "-be"):
        whole, found = (told.replace(order, "") for told in (whole, found))
    assert found == whole


def test_a_gzip_is_unpacked_in_pieces_up_to_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(gzip.compress(b"[" + b"1," * 500 + b"1]"))
    assert len("".join(text_chunks(path, 7))) == 1003
    monkeypatch.setattr("pipeline.data.json_stream.LARGEST", 1000)
    with pytest.raises(ValueError, match="more than 1000 bytes when unpacked"):
        list(text_chunks(path, 7))
    path.write_bytes(gzip.compress(b"[1]" * 99)[:-9])
    with pytest.raises(ValueError, match="the gzip is damaged or cut short"):
        list(text_chunks(path, 7))


@pytest.mark.parametrize("size", [1, 4, 1000])
def test_lines_are_cut_wherever_pieces_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr("pipeline.data.llava.text_chunks", lambda path: text_chunks(path, size))
    path = tmp_path / "x.json"
    path.write_text('\n{"id": 1}\n\n{"id": 2}\r\n{"id": 3}', encoding="utf-8")
    assert list(read_records(path, "x")) == [{"id": 1}, {"id": 2}, {"id": 3}]
    path.write_text('{"id": 1}\n{"id": 2,}\n{"id": 3}', encoding="utf-8")
    records = read_records(path, "x")
    with pytest.raises(PipelineError, match=r"line 2 column \d+"):
        list(records)
