"""Manifests: what bears identity, and how damage of the record itself is noticed."""

import json
import math
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.store.manifest import (
    DamagedManifestError,
    FileRecord,
    Manifest,
    UnknownManifestError,
    canonical,
    decode,
    digest_of,
    encode,
    fingerprint_of,
)
from tests.support.store_fixtures import sealed

LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
JSON = st.recursive(
    LEAVES.filter(lambda value: not isinstance(value, float) or math.isfinite(value)),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def manifest(**changes: Any) -> Manifest:
    files = (FileRecord(name="a/b.bin", bytes=3, sha256="0" * 64),)
    what = {"stage": "numbers", "recipe": {}, "code": {}, "inputs": {}, "source": {}}
    values: dict[str, Any] = {
        "stage": "numbers",
        "fingerprint": fingerprint_of(what),
        "payload": what,
        "digest": digest_of(files),
        "attempt": "0123-abcd",
        "files": files,
        "summary": {"rows": 3},
        "packages": {"torch": "2"},
        "commit": "",
        "created": 1.5,
        "seconds": 0.25,
    }
    return Manifest(**{**values, **changes})


def name_of(one: Manifest) -> str:
    return f"manifests/{one.stage}/{one.fingerprint}.json"


def shuffled(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: shuffled(value[key]) for key in reversed(value)}
    return [shuffled(item) for item in value] if isinstance(value, list) else value


@given(JSON)
def test_the_order_of_mappings_never_bears_identity(value: Any) -> None:
    assert fingerprint_of({"x": value}) == fingerprint_of({"x": shuffled(value)})


@given(JSON, JSON)
def test_different_values_have_different_texts(one: Any, other: Any) -> None:
    same = json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
    assert (canonical(one) == canonical(other)) == same


def test_the_text_is_json_without_blanks() -> None:
    assert canonical({"b": [1, 2.5, None], "a": "é"}) == '{"a":"é","b":[1,2.5,null]}'.encode()


@pytest.mark.parametrize("value", [{1: "a"}, {"a": [{None: 1}]}, ({True: 0},), {"x": {1, 2}}])
def test_what_json_would_bend_is_refused(value: Any) -> None:
    with pytest.raises(TypeError):
        canonical(value)


@pytest.mark.parametrize("value", [math.nan, math.inf, "\ud800"])
def test_what_has_no_honest_text_is_refused(value: Any) -> None:
    with pytest.raises(ValueError):
        canonical({"x": value})


def test_the_digest_knows_names_and_contents_but_not_their_order() -> None:
    one = FileRecord(name="a", bytes=1, sha256="1" * 64)
    two = FileRecord(name="b", bytes=1, sha256="2" * 64)
    swapped = [
        FileRecord(name="a", bytes=1, sha256="2" * 64),
        FileRecord(name="b", bytes=1, sha256="1" * 64),
    ]
    assert digest_of([one, two]) == digest_of([two, one])
    assert digest_of([one, two]) != digest_of(swapped)


def test_a_manifest_comes_back_as_it_was() -> None:
    one = manifest(summary={"loss": math.nan, "name": "é"}, accepted="f" * 64)
    read = decode(encode(one), name_of(one))
    assert read.summary == {"loss": None, "name": "é"}
    assert read.model_copy(update={"summary": one.summary}) == one


@given(st.data())
def test_any_flipped_bit_of_a_manifest_is_noticed(data: st.DataObject) -> None:
    one = manifest()
    raw = bytearray(encode(one))
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at] ^= 1 << data.draw(st.integers(0, 7))
    try:
        read = decode(bytes(raw), name_of(one))
    except DamagedManifestError:
        return
    assert read == one  # the bit was in the blanks between two values


def test_no_flipped_bit_looks_like_another_schema() -> None:
    """Every bit before the first long field, where the number of the schema stands."""
    one = manifest()
    raw = encode(one)
    for bit in range(8 * raw.index(b"payload")):
        altered = bytearray(raw)
        altered[bit // 8] ^= 1 << bit % 8
        with suppress(DamagedManifestError):
            assert decode(bytes(altered), name_of(one)) == one


@given(st.integers(0, 10_000))
def test_a_torn_manifest_is_noticed(length: int) -> None:
    one = manifest()
    raw = encode(one)
    with pytest.raises(DamagedManifestError, match="not a manifest"):
        decode(raw[: min(length, len(raw) - 1)], name_of(one))


ODD = [b"", b"[]", b"3", b'"x"', b"\xff\xfe", b"[" * 100_000, b"{" + b'"a":{' * 5000]
NO_HONEST_TEXT = [b'{"manifest": NaN}', b'{"manifest": 1e999}', b'{"manifest": "\\ud800"}']


@pytest.mark.parametrize("raw", [*ODD, *NO_HONEST_TEXT])
def test_other_content_is_no_manifest(raw: bytes) -> None:
    with pytest.raises(DamagedManifestError):
        decode(raw, "manifests/numbers/x.json")


def test_a_manifest_of_another_artifact_is_refused() -> None:
    one = manifest()
    with pytest.raises(DamagedManifestError, match="another artifact"):
        decode(encode(one), f"manifests/numbers/{'1' * 64}.json")


def test_another_schema_is_named_and_not_guessed() -> None:
    one = manifest()
    future = sealed({**json.loads(encode(one)), "manifest": 7, "new field": 1})
    with pytest.raises(UnknownManifestError, match="schema 7, this phivision reads 1"):
        decode(future, name_of(one))


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/../../b", "a\\b", "", "a\n"])
def test_a_file_name_that_leaves_its_folder_is_refused(name: str) -> None:
    with pytest.raises(ValueError):
        FileRecord(name=name, bytes=1, sha256="0" * 64)


def test_a_whole_manifest_that_names_such_a_file_is_refused() -> None:
    body = json.loads(encode(manifest()))
    body["files"][0]["name"] = "../../x"
    with pytest.raises(DamagedManifestError, match=r"files\.0\.name"):
        decode(sealed(body), name_of(manifest()))


def test_the_folder_is_below_the_stage() -> None:
    assert manifest().folder == "artifacts/numbers/0123-abcd"
