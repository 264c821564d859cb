"""Each filter drops with exactly its reason; every row is kept or dropped, whatever its text."""

from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.filtered import filtered_captions, filtered_conversations
from pipeline.data.filters import CAPTION_FILTERS, CONVERSATION_FILTERS
from pipeline.data.schemas import CAPTIONS, CONVERSATIONS, IMAGES
from pipeline.data.spaceless import words
from pipeline.recipe.presets import preset

PART = preset("demo").examples.model_copy(
    update={
        "caption_max_characters": 40,
        "caption_min_words": 3,
        "refusals": ("unable to see",),
        "forbidden_answers": ("bounding box", "the captions"),
        "max_aspect_ratio": 3.0,
    }
)
WIDE, PLAIN = 9, 1
TALK = [("human", "<image>\nWhat is it?"), ("gpt", "A cat.")]


def image(image_id: int, width: int = 640, height: int = 480, name: str = "") -> dict[str, Any]:
    return {
        "image_id": image_id,
        "split": "train",
        "source": "folder",
        "origin": "train2017",
        "file_name": name or f"{image_id:012d}.jpg",
        "sha256": f"{image_id:064x}",
        "bytes": 1,
        "width": width,
        "height": height,
        "url": "",
    }


IMAGE_ROWS = [image(PLAIN), image(WIDE, 1000, 333), image(2, 900, 300), image(3, 300, 900)]


def captioned(captions: list[tuple[int, str]]) -> list[dict[str, Any]]:
    """Run the caption filters over (image id, caption) pairs."""
    rows = [
        {"caption_id": number, "image_id": at, "caption": text}
        for number, (at, text) in enumerate(captions)
    ]
    images = pa.Table.from_pylist(IMAGE_ROWS, IMAGES)
    tables = filtered_captions(pa.Table.from_pylist(rows, CAPTIONS), images, PART, rows=2)
    return [row for table in tables for row in table.to_pylist()]


def spoken(
    talks: list[tuple[str, list[tuple[str, str]]]],
    images: list[dict[str, Any]] | None = None,
    source: str = "file",
) -> list[dict[str, Any]]:
    """Run the conversation filters over (image name, [(speaker, text)]) pairs."""
    rows = [
        {
            "conversation_id": number,
            "source": source,
            "record_id": str(number),
            "image_name": name,
            "more_images": [],
            "turns": [{"speaker": speaker, "text": text} for speaker, text in turns],
        }
        for number, (name, turns) in enumerate(talks)
    ]
    talks_table = pa.Table.from_pylist(rows, CONVERSATIONS)
    pieces = [talks_table.slice(start, 2) for start in range(0, len(talks_table), 2)]
    known = pa.Table.from_pylist(images or IMAGE_ROWS, IMAGES)
    tables = filtered_conversations(talks_table, pieces, known, PART)
    return [row for table in tables for row in table.to_pylist()]


def name(image_id: int) -> str:
    return f"{image_id:012d}.jpg"


CAPTION_CASES = {
    "image missing": [(404, "a cat sleeps")],
    "empty": [(PLAIN, ""), (PLAIN, " \n\t\u00a0\u200b\u3000"), (PLAIN, "\ufeff")],
    "refusal": [(PLAIN, "I am Unable to SEE it")],
    "too many characters": [(PLAIN, "a cat " + "x" * 34)],
    "too few words": [(PLAIN, "cat"), (PLAIN, "  a \n cat  "), (PLAIN, "a\u00a0cat")],
    "aspect ratio": [(WIDE, "a wide cat")],
}


@pytest.mark.parametrize("reason", CAPTION_CASES)
def test_each_caption_filter_gives_its_reason(reason: str) -> None:
    assert [row["reason"] for row in captioned(CAPTION_CASES[reason])] == [reason] * len(
        CAPTION_CASES[reason]
    )


def test_every_caption_filter_is_tested() -> None:
    assert [*CAPTION_CASES, "duplicate"] == [reason for reason, _ in CAPTION_FILTERS]


def test_captions_at_the_limits_are_kept() -> None:
    kept = [
        (PLAIN, "a cat sits"),
        (PLAIN, "a cat " + "x" * 33),
        (2, "a wide cat"),
        (3, "a tall cat"),
    ]
    assert [row["reason"] for row in captioned(kept)] == [None] * 4


def test_later_copies_of_a_caption_are_dropped_the_first_is_kept() -> None:
    rows = captioned(
        [(PLAIN, "A cat sits"), (2, "a cat sits"), (PLAIN, "a  CAT\nsits "), (PLAIN, "a cat sat")]
    )
    assert [row["reason"] for row in rows] == [None, None, "duplicate", None]


def test_kept_captions_are_tidied() -> None:
    rows = captioned([(PLAIN, " a\u00a0cat\n\n sits\u2003on\u200b a\tmat\u3000")])
    assert rows[0]["caption"] == "a cat sits on a mat"
    assert rows[0]["reason"] is None
    assert rows[0]["sha256"] == f"{PLAIN:064x}"


def test_the_first_caption_reason_wins() -> None:
    long = "unable to see " + "x" * 60
    assert [row["reason"] for row in captioned([(404, ""), (WIDE, ""), (WIDE, long)])] == [
        "image missing",
        "empty",
        "refusal",
    ]
    assert captioned([(WIDE, "y" * 60)])[0]["reason"] == "too many characters"
    assert captioned([(WIDE, "y")])[0]["reason"] == "too few words"


CONVERSATION_CASES: dict[str, list[tuple[str, list[tuple[str, str]]]]] = {
    "image missing": [(name(404), TALK), ("", TALK), ("it's.jpg", TALK)],
    "odd turns": [(name(PLAIN), []), (name(PLAIN), TALK[:1]), (name(PLAIN), [*TALK, TALK[0]])],
    "speakers do not alternate": [
        (name(PLAIN), [TALK[0], ("human", "again")]),
        (name(PLAIN), [("gpt", "<image> hello"), ("human", "hi")]),
        (name(PLAIN), [("system", "<image> hello"), ("gpt", "hi")]),
        (name(PLAIN), [*TALK, ("gpt", "more"), ("human", "no")]),
    ],
    "image marker count": [
        (name(PLAIN), [("human", "What is it?"), ("gpt", "A cat.")]),
        (name(PLAIN), [("human", "<image><image> What?"), ("gpt", "A cat.")]),
        (name(PLAIN), [("human", "<image> What?"), ("gpt", "An <image>.")]),
        (name(PLAIN), [("human", "What?"), ("gpt", "A cat. <image>")]),
    ],
    "empty turn": [
        (name(PLAIN), [("human", "<image>\n \u00a0"), ("gpt", "A cat.")]),
        (name(PLAIN), [TALK[0], ("gpt", "\u3000\n")]),
    ],
    "speaks of captions or boxes": [
        (name(PLAIN), [TALK[0], ("gpt", "The Captions say a cat.")]),
        (name(PLAIN), [*TALK, ("human", "Where?"), ("gpt", "In the bounding BOX.")]),
    ],
    "aspect ratio": [(name(WIDE), TALK)],
}


@pytest.mark.parametrize("reason", CONVERSATION_CASES)
def test_each_conversation_filter_gives_its_reason(reason: str) -> None:
    cases = CONVERSATION_CASES[reason]
    assert [row["reason"] for row in spoken(cases)] == [reason] * len(cases)


def test_every_conversation_filter_is_tested() -> None:
    reasons = [reason for reason, _ in CONVERSATION_FILTERS]
    assert ["ambiguous image", *CONVERSATION_CASES, "duplicate"] == reasons


def test_later_copies_of_a_conversation_are_dropped() -> None:
    other = [TALK[0], ("gpt", "A dog.")]
    rows = spoken([(name(1), TALK), (name(2), TALK), (name(1), TALK), (name(1), other)])
    assert [row["reason"] for row in rows] == [None, None, "duplicate", None]


def test_a_question_may_speak_of_captions() -> None:
    asked = [("human", "<image> What do the captions say?"), ("gpt", "A cat.")]
    assert spoken([(name(1), asked)])[0]["reason"] is None


def test_kept_conversations_are_bare_and_tidy() -> None:
    turns = [
        ("human", "<image>\nWhat  is\u00a0it?"),
        ("gpt", " A\ncat. "),
        ("human", "Sure?"),
        ("gpt", "Yes"),
    ]
    row = spoken([(name(1), turns)])[0]
    assert row["texts"] == ["What is it?", "A cat.", "Sure?", "Yes"]
    assert row["reason"] is None


def test_the_first_conversation_reason_wins() -> None:
    boxes = ("gpt", "the captions")
    rows = spoken(
        [
            (name(404), []),
            (name(WIDE), [("gpt", ""), ("gpt", ""), ("gpt", "")]),
            (name(WIDE), [("gpt", ""), ("gpt", "")]),
            (name(WIDE), [("human", ""), boxes]),
            (name(WIDE), [("human", "<image>"), boxes]),
            (name(WIDE), [TALK[0], boxes]),
        ]
    )
    assert [row["reason"] for row in rows] == list(CONVERSATION_CASES)[:6]


@pytest.mark.parametrize(
    "written", ["000000000001.jpg", "coco/train2017/000000000001.jpg", "a\\b\\000000000001.jpg"]
)
def test_an_image_is_found_by_name_path_and_coco_2014_prefix(written: str) -> None:
    prefixed = written.replace("0000", "COCO_train2014_0000", 1)
    rows = spoken([(written, TALK), (prefixed, [TALK[0], ("gpt", "B.")])])
    assert [row["image_id"] for row in rows] == [1, 1]
    assert [row["reason"] for row in rows] == [None, None]


@pytest.mark.parametrize(
    ("written", "found"),
    [
        ("same.jpg", (None, "ambiguous image")),
        ("a/same.jpg", (5, None)),
        ("set/b/same.jpg", (6, None)),
        ("c/same.jpg", (None, "image missing")),
        ("ba/same.jpg", (None, "image missing")),
        ("set/a/alone.jpg", (7, None)),
        ("alone.jpg", (7, None)),
        ("b/alone.jpg", (None, "image missing")),
        ("twice.jpg", (None, "ambiguous image")),
        ("x/top.jpg", (10, None)),
        ("top.jpg", (11, None)),
    ],
)
def test_a_name_means_one_image_or_none(written: str, found: tuple[int | None, str | None]) -> None:
    images = [
        *(image(5, name="a/same.jpg"), image(6, name="b/same.jpg"), image(7, name="a/alone.jpg")),
        *(image(8, name="twice.jpg"), image(9, name="twice.jpg")),
        *(image(10, name="x/top.jpg"), image(11, name="top.jpg")),
    ]
    rows = spoken([(written, TALK)], images)
    assert [(row["image_id"], row["reason"]) for row in rows] == [found]


@pytest.mark.parametrize(
    ("written", "found"),
    [
        ("train2017/000.jpg", (5, None)),
        ("coco/val2017/000.jpg", (6, None)),
        ("val2017\\000.jpg", (6, None)),
        ("000.jpg", (None, "ambiguous image")),
        ("train2017/001.jpg", (7, None)),
        ("val2017/001.jpg", (None, "image missing")),
        ("001.jpg", (7, None)),
        ("Mo\u0308we.jpg", (8, None)),
        ("M\u00f6we.jpg", (8, None)),
        ("m\u00f6we.jpg", (None, "image missing")),
        ("equal.jpg", (9, None)),
    ],
)
def test_a_name_is_read_as_people_mean_it(
    written: str, found: tuple[int | None, str | None]
) -> None:
    images = [
        *(image(5, name="000.jpg"), {**image(6, name="000.jpg"), "origin": "val2017"}),
        *(image(7, name="001.jpg"), image(8, name="M\u00f6we.jpg")),
        *(image(9, name="a/equal.jpg"), {**image(10, name="b/equal.jpg"), "sha256": f"{9:064x}"}),
    ]
    rows = spoken([(written, TALK)], images)
    assert [(row["image_id"], row["reason"]) for row in rows] == [found]


def test_words_of_scripts_without_blanks_are_their_characters() -> None:
    rows = captioned([(PLAIN, "一只黑猫"), (PLAIN, "猫。"), (PLAIN, "黑猫 A")])
    assert [row["reason"] for row in rows] == [None, "too few words", None]


texts = st.one_of(
    st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=50),
    st.sampled_from(
        [
            "",
            "'",
            '"',
            "';--",
            "$refusals",
            "{reason}",
            "%s",
            "\\",
            "a cat sits",
            "<image>",
            "<image> a",
        ]
    ),
)


@settings(max_examples=40, deadline=None)
@given(captions=st.lists(st.tuples(st.sampled_from([1, 2, WIDE, 404]), texts), max_size=8))
def test_every_caption_is_kept_tidy_or_dropped_with_a_known_reason(
    captions: list[tuple[int, str]],
) -> None:
    known = {reason for reason, _ in CAPTION_FILTERS}
    rows = captioned(captions)
    assert [row["caption_id"] for row in rows] == list(range(len(captions)))
    for row in rows:
        assert row["reason"] is None or row["reason"] in known
        assert row["caption"] == " ".join(row["caption"].split())
        if row["reason"] is None:
            assert len(words(row["caption"])) >= 3


turn_lists = st.lists(st.tuples(st.sampled_from(["human", "gpt", "'system'"]), texts), max_size=4)


@settings(max_examples=40, deadline=None)
@given(talks=st.lists(st.tuples(st.one_of(st.just(name(1)), texts), turn_lists), max_size=5))
def test_every_conversation_is_kept_tidy_or_dropped_with_a_known_reason(
    talks: list[tuple[str, list[tuple[str, str]]]],
) -> None:
    known = {reason for reason, _ in CONVERSATION_FILTERS}
    rows = spoken(talks)
    assert [row["conversation_id"] for row in rows] == list(range(len(talks)))
    for row in rows:
        assert row["reason"] is None or row["reason"] in known
        if row["reason"] is None:
            assert len(row["texts"]) % 2 == 0
            assert all(text and text == " ".join(text.split()) for text in row["texts"])
            assert not any("<image>" in text for text in row["texts"])
