"""The `conversations` stage on LLaVA-Instruct JSON, whole and broken."""

import gzip
import hashlib
import json
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.conversations import conversations
from pipeline.engine.stage import StageContext
from pipeline.errors import PipelineError
from pipeline.recipe.data_sources import FileConversations
from pipeline.recipe.parts import ConversationsPart
from pipeline.settings import Settings
from storage.errors import StorageError
from storage.tables import read_table

Json = Any


class Recorder:
    """Keeps what a stage says and tracks."""

    def __init__(self) -> None:
        self.labels: list[str] = []

    def say(self, text: str) -> None:
        self.labels.append(text)

    @contextmanager
    def track(self, label: str, total: int | None, done: int = 0) -> Generator[Any]:
        del total, done
        self.labels.append(label)
        yield lambda amount=1, note="": None


def talk(number: int, **changes: Json) -> dict[str, Json]:
    turns = [
        {"from": "human", "value": f"<image>\nWhat is {number}?"},
        {"from": "gpt", "value": "A cat."},
    ]
    return {"id": str(number), "image": f"{number}.jpg", "conversations": turns, **changes}


def run(
    file: Path,
    work: Path,
    sha256: str | None = None,
    text_only: Literal["drop", "keep"] = "drop",
    max_images: int = 1,
) -> tuple[dict[str, Json], Path]:
    out, scratch = work / "out", work / "scratch"
    out.mkdir(parents=True)
    scratch.mkdir()
    context = StageContext({}, out, scratch, Settings(), Recorder())
    source = FileConversations(path=str(file), sha256=sha256)
    part = ConversationsPart(source=source, text_only=text_only, max_images=max_images)
    return dict(conversations(context, part, seed=0)), out


def written(path: Path, value: Json) -> Path:
    path.write_bytes(value if isinstance(value, bytes) else json.dumps(value).encode())
    return path


def rows(out: Path, name: str = "conversations") -> list[dict[str, Json]]:
    return read_table(out / f"{name}.parquet").to_pylist()


def test_a_list_becomes_rows_in_order(tmp_path: Path) -> None:
    more = [*talk(2)["conversations"], *talk(2)["conversations"]]
    file = written(tmp_path / "llava.json", [talk(1), talk(2, conversations=more)])
    summary, out = run(file, tmp_path / "work")
    assert summary == {"conversations": 2, "turns": 3, "broken_records": 0}
    assert [row["image_name"] for row in rows(out)] == ["1.jpg", "2.jpg"]
    assert rows(out)[0]["turns"][0] == {"speaker": "human", "text": "<image>\nWhat is 1?"}
    assert len(rows(out)[1]["turns"]) == 4


@pytest.mark.parametrize("end", ["\n", "\r\n", "\n\n  \n"])
@pytest.mark.parametrize("name", ["llava.json", "llava.jsonl"])
def test_json_lines_are_read_whatever_the_name(tmp_path: Path, end: str, name: str) -> None:
    lines = end.join(json.dumps(talk(number)) for number in range(3)) + end
    summary, _ = run(written(tmp_path / name, lines.encode()), tmp_path / "work")
    assert summary["conversations"] == 3


def test_line_separators_inside_a_text_do_not_cut_json_lines(tmp_path: Path) -> None:
    text = "one\u2028two\u2029three\x85four"
    record = talk(1, conversations=[{"from": "human", "value": text}])
    file = written(tmp_path / "llava.jsonl", json.dumps(record, ensure_ascii=False).encode())
    _, out = run(file, tmp_path / "work")
    assert rows(out)[0]["turns"][0]["text"] == text


def test_a_byte_order_mark_is_read_over(tmp_path: Path) -> None:
    file = written(tmp_path / "llava.json", b"\xef\xbb\xbf" + json.dumps([talk(1)]).encode())
    assert run(file, tmp_path / "work")[0]["conversations"] == 1


@pytest.mark.parametrize(
    "broken",
    [b"[{", b"{", b"hello", b"\xff\xfe\x00x", b"[" * 100_000, b'{"id": 1}\n{"id": '],
    ids=["list", "object", "text", "bytes", "deep", "lines"],
)
def test_broken_json_names_the_persons_file(tmp_path: Path, broken: bytes) -> None:
    file = written(tmp_path / "mine.json", broken)
    with pytest.raises(PipelineError, match=r"mine\.json is neither a JSON list nor JSON lines"):
        run(file, tmp_path / "work")


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("key", ["data", "annotations", "conversations"])
def test_an_object_around_the_list_is_read_through(
    tmp_path: Path, key: str, indent: int | None
) -> None:
    text = json.dumps({"version": 1, "notes": [1], key: [talk(1), talk(2)]}, indent=indent)
    summary, _ = run(written(tmp_path / "llava.json", text.encode()), tmp_path / "work")
    assert summary["conversations"] == 2


def test_an_object_with_several_lists_of_records_names_them(tmp_path: Path) -> None:
    file = written(tmp_path / "mine.json", {"train": [talk(1)], "val": [talk(2)]})
    with pytest.raises(PipelineError, match=r"mine\.json .*object with the lists 'train', 'val'"):
        run(file, tmp_path / "work")


def test_one_record_over_several_lines_is_one_record(tmp_path: Path) -> None:
    file = written(tmp_path / "llava.json", json.dumps(talk(1), indent=1).encode())
    assert run(file, tmp_path / "work")[0]["conversations"] == 1


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig", "utf-32-be"])
@pytest.mark.parametrize("name", ["llava.json", "llava.jsonl", "llava.json.gz"])
def test_any_encoding_is_read_gzipped_or_not(tmp_path: Path, name: str, encoding: str) -> None:
    records = [talk(1), talk(2, image="M\u00f6we.jpg")]
    if "jsonl" in name:
        text = "\n".join(json.dumps(each, ensure_ascii=False) for each in records)
    else:
        text = json.dumps(records, ensure_ascii=False)
    data = text.encode(encoding)
    file = written(tmp_path / name, gzip.compress(data) if name.endswith("gz") else data)
    _, out = run(file, tmp_path / "work")
    assert [row["image_name"] for row in rows(out)] == ["1.jpg", "M\u00f6we.jpg"]


@pytest.mark.parametrize("line", [1, 4])
def test_a_broken_line_is_told_by_its_number_in_the_file(tmp_path: Path, line: int) -> None:
    lines = [json.dumps(talk(1)), "", json.dumps(talk(2)), json.dumps(talk(3)), ""]
    lines[line - 1] = lines[line - 1][:61]
    file = written(tmp_path / "mine.jsonl", "\n".join(lines).encode())
    with pytest.raises(PipelineError, match=rf"mine\.jsonl .*line {line} column"):
        run(file, tmp_path / "work")


def test_if_no_record_is_whole_the_first_fault_is_told(tmp_path: Path) -> None:
    file = written(tmp_path / "llava.json", [{"image": "1.jpg", "text": "hello"}] * 2)
    told = "broken records: 2; the first: broken record, no list 'conversations'"
    with pytest.raises(PipelineError, match=told):
        run(file, tmp_path / "work")


def test_a_web_page_in_place_of_the_file_is_called_one(tmp_path: Path) -> None:
    file = written(tmp_path / "mine.json", b"<!DOCTYPE html><html>404</html>")
    with pytest.raises(StorageError, match=r"mine\.json gave a web page"):
        run(file, tmp_path / "work")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises((PipelineError, StorageError), match=r"absent\.json"):
        run(tmp_path / "absent.json", tmp_path / "work")


def test_another_checksum_is_refused(tmp_path: Path) -> None:
    file = written(tmp_path / "llava.json", [talk(1)])
    right = hashlib.sha256(file.read_bytes()).hexdigest()
    assert run(file, tmp_path / "right", right)[0]["conversations"] == 1
    with pytest.raises(StorageError):
        run(file, tmp_path / "wrong", "0" * 64)


def test_records_without_an_image_are_dropped_as_such(tmp_path: Path) -> None:
    bare = talk(7)
    del bare["image"]
    file = written(tmp_path / "llava.json", [talk(1), bare, talk(8, image=None)])
    _, out = run(file, tmp_path / "work")
    assert [(row["record"], row["reason"]) for row in rows(out, "drops")] == [
        ("7", "no image"),
        ("8", "no image"),
    ]
    assert len(rows(out)) == 1


def test_records_without_an_image_are_kept_where_text_alone_is_wanted(tmp_path: Path) -> None:
    bare, odd = talk(7), talk(9, conversations=[{"from": "human"}])
    del bare["image"], odd["image"]
    file = written(tmp_path / "llava.json", [talk(1), bare, talk(8, image=None), odd])
    _, out = run(file, tmp_path / "work", text_only="keep")
    assert [row["image_name"] for row in rows(out)] == ["1.jpg", None, None]
    assert [row["record"] for row in rows(out, "drops")] == ["9"]


def test_a_record_may_have_as_many_images_as_the_recipe_says(tmp_path: Path) -> None:
    records = [talk(1), talk(2, image=["a.jpg"]), talk(3, image=["a.jpg", "b.jpg"])]
    file = written(tmp_path / "llava.json", records)
    for most, kept in ((1, ["1", "2"]), (2, ["1", "2", "3"])):
        _, out = run(file, tmp_path / f"work {most}", max_images=most)
        assert [row["record_id"] for row in rows(out)] == kept
        told = [(row["record"], row["reason"], row["detail"]) for row in rows(out, "drops")]
        raised = [("3", "too many images", "2; conversations.max_images=2 keeps it")]
        assert told == raised * (most == 1)
    assert [(row["image_name"], row["more_images"]) for row in rows(out)] == [
        ("1.jpg", []),
        ("a.jpg", []),
        ("a.jpg", ["b.jpg"]),
    ]


@pytest.mark.parametrize("images", [[], ["a.jpg", None], [["a.jpg"]], {"a": 1}, 5])
def test_images_that_are_no_names_are_told(tmp_path: Path, images: Json) -> None:
    file = written(tmp_path / "llava.json", [talk(1), talk(2, image=images)])
    _, out = run(file, tmp_path / "work", max_images=3)
    (lost,) = rows(out, "drops")
    assert lost["reason"] == "broken record"
    assert lost["detail"].startswith("'image' is neither text nor a list of texts: ")


@pytest.mark.parametrize(
    "record",
    [
        None,
        5,
        "text",
        [],
        {},
        talk(1, conversations="hello"),
        talk(1, conversations=None),
        talk(1, conversations=[1]),
        talk(1, conversations=[{"from": "human"}]),
        talk(1, conversations=[{"from": 1, "value": "x"}]),
        talk(1, conversations=[{"from": "human", "value": "\ud800"}]),
        talk(1, image=5),
        talk(1, image="\ud800.jpg"),
    ],
)
def test_records_of_another_shape_are_dropped_as_broken(tmp_path: Path, record: Json) -> None:
    file = written(tmp_path / "llava.json", [record, talk(2)])
    summary, out = run(file, tmp_path / "work")
    assert summary == {"conversations": 1, "turns": 1, "broken_records": 1}
    assert [(row["record"], row["reason"]) for row in rows(out, "drops")] == [
        ("0", "broken record")
    ]
    assert rows(out)[0]["conversation_id"] == 1


@pytest.mark.parametrize("content", [b"", b"[]", b'{"a": 1}'])
def test_a_file_without_a_conversation_is_named(tmp_path: Path, content: bytes) -> None:
    file = written(tmp_path / "llava.json", content)
    with pytest.raises(PipelineError, match=r"llava\.json holds no conversation about an image"):
        run(file, tmp_path / "work")


def test_any_id_is_kept_as_text(tmp_path: Path) -> None:
    file = written(
        tmp_path / "llava.json", [talk(1, id=2**80), talk(2, id="\ud800"), talk(3, id=[])]
    )
    _, out = run(file, tmp_path / "work")
    assert [row["record_id"] for row in rows(out)] == [str(2**80), "'\\ud800'", "[]"]


values = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        st.text(st.characters(), max_size=8),
        st.sampled_from(["human", "gpt", "<image>", "1.jpg"]),
    ),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["id", "image", "conversations", "from", "value"]), inner, max_size=5
        )
    ),
    max_leaves=12,
)
turn = st.fixed_dictionaries({"from": st.just("human") | values, "value": st.text() | values})
records = st.fixed_dictionaries(
    {"conversations": st.lists(turn | values, max_size=3) | values},
    optional={"id": values, "image": st.just("1.jpg") | values},
)


@settings(max_examples=150, deadline=None)
@given(document=st.lists(records | values, max_size=4) | values, lines=st.booleans())
def test_strange_json_gives_tables_or_a_clear_error(document: Json, lines: bool) -> None:
    listed = document if isinstance(document, list) else [document]
    text = "\n".join(map(json.dumps, listed)) if lines else json.dumps(document)
    with tempfile.TemporaryDirectory() as folder:
        file = written(Path(folder) / "llava.json", text.encode())
        try:
            summary, out = run(file, Path(folder) / "work")
        except (PipelineError, StorageError) as error:
            assert "llava.json" in str(error)  # noqa: PT017
            return
        assert summary["conversations"] == len(rows(out))
        assert summary["broken_records"] == len(rows(out, "drops"))
        if isinstance(document, list) and not lines:
            assert len(rows(out)) + len(rows(out, "drops")) == len(document)
