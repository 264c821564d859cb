"""Filters of the recipe: refused before any work, or each row dropped under its name."""

from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.example_checks import Checks
from pipeline.data.made_examples import MadeExamples, used_images
from pipeline.data.schemas import IMAGES
from pipeline.data.user_filtered import UserFilters
from pipeline.engine.stage import InputArtifact, StageContext
from pipeline.errors import PipelineError, RecipeError
from pipeline.progress import ConsoleReporter
from pipeline.recipe.presets import preset
from pipeline.recipe.user_filters import COLUMNS, apply_filters, filters_fault
from pipeline.settings import Settings
from storage.tables import write_table

ROW = {
    "source": "folder",
    "kind": "caption",
    "split": "train",
    "image_id": 1,
    "file_name": "a.jpg",
    "width": 640,
    "height": 480,
    "text": "A CAT.",
    "characters": 6,
    "tokens": 4,
    "turns": 0,
    "questions": [],
    "answers": [],
    "clip_score": None,
    "duplicate_similarity": None,
    "test_similarity": None,
}
TALK = {**ROW, "kind": "conversation", "turns": 1, "questions": ["Is it?"], "answers": ["Yes."]}


def test_the_example_row_has_every_documented_column() -> None:
    assert set(ROW) == {name for name, _, _ in COLUMNS}


@pytest.mark.parametrize(
    ("predicate", "dropped"),
    [
        ("text = upper(text)", [0]),
        ("kind = 'conversation' AND len(answers) < 2 -- a comment", [1]),
        ("len(list_filter(answers, lambda a: a ILIKE 'yes%')) > 0", [1]),
        ("width BETWEEN 600 AND 700", [0, 1]),
        ("nullif(turns, 0) = 2", []),
    ],
)
def test_rows_are_dropped_where_the_predicate_is_true(predicate: str, dropped: list[int]) -> None:
    assert filters_fault({"mine": predicate}) == ""
    rows = [ROW, {**TALK, "text": "Is it?"}]
    assert apply_filters({"mine": predicate}, rows) == dict.fromkeys(dropped, "mine")


def test_the_first_reason_by_name_wins() -> None:
    assert apply_filters({"b": "true", "a": "kind = 'caption'"}, [ROW, TALK]) == {0: "a", 1: "b"}


BROKEN = {
    "": "SELECT clause",
    "bogus > 3": "columns: source, kind",
    "width": "INTEGER, not true or false",
    "text; DROP TABLE rows": "Parser Error",
    "true) UNION SELECT 1 FROM rows WHERE (true": "Parser Error",
    "EXISTS (FROM read_text('/etc/passwd'))": "a subquery is not allowed",
    "(SELECT count(*) FROM rows) > 3": "a subquery is not allowed",
    "COLUMNS(*) IS NULL": "a star is not allowed",
    "age(TIMESTAMP '2020-01-01') > INTERVAL 1 DAY": "age() with one argument gives another",
    "random() < 0.5": "random gives another result in each run",
    "current_date > DATE '2026-01-01'": "current_date gives another result in each run",
    "count(*) > 3": "aggregates",
    "row_number() OVER () > 3": "window functions",
    "text = '\ud800'": "not valid Unicode",
    "getenv('HOME') = ''": "getenv",
    "$x = 1": "parameters",
}


@pytest.mark.parametrize("predicate", BROKEN)
def test_what_is_no_predicate_over_the_columns_is_refused_by_the_recipe(predicate: str) -> None:
    with pytest.raises(RecipeError, match=r"examples\.filters") as told:
        preset("demo").override({"examples.filters": {"mine": predicate}})
    assert BROKEN[predicate] in str(told.value)
    assert "mine" in str(told.value)


def test_a_good_filter_is_part_of_the_recipe() -> None:
    recipe = preset("demo").override({"examples.filters": '{"shouting": "text = upper(text)"}'})
    assert recipe.examples.filters == {"shouting": "text = upper(text)"}
    with pytest.raises(RecipeError, match="not a valid name"):
        preset("demo").override({"examples.filters": {" ": "true"}})


def test_a_predicate_that_fails_on_a_row_is_named() -> None:
    filters = {"odd": "CAST(text AS INTEGER) > 4"}
    assert filters_fault(filters) == ""
    with pytest.raises(PipelineError, match=r"filter 'odd' of examples\.filters cannot"):
        apply_filters(filters, [ROW])


@settings(max_examples=40, deadline=None)
@given(
    st.text(max_size=30)
    | st.lists(
        st.sampled_from(["text", "(", ")", "=", "'", "width", "1", ";", "--", "\n", "SELECT", "{}"])
    ).map(" ".join)
)
def test_any_text_is_a_filter_or_refused(predicate: str) -> None:
    if filters_fault({"mine": predicate}) == "":
        try:
            reasons = apply_filters({"mine": predicate}, [ROW, TALK])
        except PipelineError as error:
            assert "mine" in str(error)  # noqa: PT017
        else:
            assert set(reasons.values()) <= {"mine"}


class Folder:
    """An artifact whose files lie in one folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, name: str) -> Path:
        return self.root / name


def example(number: int, text: str, **changes: Any) -> dict[str, Any]:
    made = {"example_id": number, "kind": "caption", "split": "train", "image_id": 7}
    made |= {"source": "folder", "sha256": "a"}
    more = {"source_id": 10 + number, "turns": 0, "text": text, "input_ids": [1, 2], "pairs": []}
    return {**made, **more, **changes}


def test_examples_that_a_filter_of_the_recipe_drops_are_drops(tmp_path: Path) -> None:
    image = dict.fromkeys(IMAGES.names, 0) | dict.fromkeys(
        ("split", "source", "origin", "sha256"), ""
    )
    image |= {"image_id": 7, "file_name": "a.jpg", "width": 64, "height": 48, "url": ""}
    write_table(tmp_path / "images.parquet", [image], IMAGES)
    context = StageContext(
        {"images": cast("InputArtifact", Folder(tmp_path))}, tmp_path, tmp_path, Settings(),
        ConsoleReporter(),
    )  # fmt: skip
    filters = {"small": "width < 60", "shouting": "text = upper(text)", "asked twice": "turns > 1"}
    part = preset("demo").examples.model_copy(update={"filters": filters})
    pairs = [("Is it?", "Yes."), ("Is it?", "No.")]
    rows = [
        example(0, "A CAT"),
        example(1, "A cat"),
        example(2, "Is it? Yes.", kind="conversation", turns=2, pairs=pairs),
        example(3, "A dog"),
    ]
    drops: list[dict[str, Any]] = []
    kept = UserFilters(context.inputs, part).keep(rows, drops)
    assert [row["text"] for row in kept] == ["A cat", "A dog"]
    assert [(d["record"], d["kind"], d["file"], d["reason"]) for d in drops] == [
        ("10", "caption", "a.jpg", "shouting"),
        ("12", "conversation", "a.jpg", "asked twice"),
    ]


def imaged(*images: tuple[int, str, str]) -> list[dict[str, Any]]:
    shared = {"kind": "caption", "source_id": 0, "further": []}
    return [{**shared, "image_id": n, "split": split, "sha256": sha} for n, split, sha in images]


def refuse_leaks(rows: list[dict[str, Any]]) -> None:
    """Look for leaks among rows that come one by one."""
    checks, nothing = Checks(), MadeExamples.of([], [], [], 0)
    for row in rows:
        checks.add(nothing._replace(used=used_images([row])))
    checks.refuse_leaks()


def test_an_image_on_both_sides_stops_the_run() -> None:
    refuse_leaks(imaged((1, "train", "a"), (1, "train", "a"), (2, "test", "b")))
    for split in ("train", "validation"):
        rows = imaged((1, split, "a"), (1, split, "a"), (3, split, "c"), (2, "test", "a"))
        with pytest.raises(PipelineError, match=rf"image 1 \({split}\) and image 2 \(test\) are"):
            refuse_leaks(rows)
    refuse_leaks([])
