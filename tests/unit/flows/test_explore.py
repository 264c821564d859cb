"""The explorer's questions to the catalog: filters, pages, details, drawings."""

import io
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from flows.explore.images import LARGE, StoredImages, marked, small
from flows.explore.queries import (
    ANY,
    Filters,
    KeptCatalog,
    choices,
    describe,
    find_images,
    hashes_of,
)
from pipeline.catalog.catalog import Catalog
from pipeline.settings import Settings
from storage.store.artifacts import ArtifactStore
from tests.support.small_store import build_store, image_rows

PIXELS = 10**7


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ArtifactStore:
    return build_store(tmp_path_factory.mktemp("explore"))


@pytest.fixture
def catalog(store: ArtifactStore) -> Catalog:
    return Catalog(store)


def ids(catalog: Catalog, **filters: Any) -> list[int]:
    rows, total, _ = find_images(catalog, Filters(**filters), 0, 1000)
    assert total == len(rows)
    return [row["image_id"] for row in rows]


def query(catalog: Catalog, sql: str) -> list[Any]:
    return catalog.query(sql, printable=False).column(0).to_pylist()


def test_without_filters_every_image_is_listed_in_pages(catalog: Catalog) -> None:
    everything = [row["image_id"] for row in image_rows()]
    assert ids(catalog) == everything
    rows, total, _ = find_images(catalog, Filters(), 3, 4)
    assert total == len(everything)
    assert [row["image_id"] for row in rows] == everything[3:7]
    assert find_images(catalog, Filters(), 1000, 4)[:2] == ([], total)


def test_filters_find_what_sql_finds(catalog: Catalog) -> None:
    of_split = query(catalog, "SELECT image_id FROM images WHERE split = 'test' ORDER BY ALL")
    assert sorted(ids(catalog, split="test")) == of_split
    category = query(catalog, "SELECT min(category) FROM objects")[0]
    named = query(
        catalog, f"SELECT DISTINCT image_id FROM objects WHERE category = '{category}' ORDER BY 1"
    )
    assert sorted(ids(catalog, category=category)) == named
    both = set(of_split) & set(named)
    assert set(ids(catalog, category=category, split="test")) == both
    assert ids(catalog, split="nowhere") == []


def test_text_is_found_in_captions_talk_and_predictions_in_any_case(catalog: Catalog) -> None:
    caption = query(catalog, "SELECT caption FROM captions ORDER BY caption_id LIMIT 1")[0]
    image = query(catalog, "SELECT image_id FROM captions ORDER BY caption_id LIMIT 1")[0]
    assert image in ids(catalog, text=f" {caption.upper()} ")
    said = query(catalog, "SELECT prediction FROM predictions WHERE kind = 'answer' LIMIT 1")[0]
    about = query(catalog, "SELECT image_id FROM predictions WHERE kind = 'answer' LIMIT 1")[0]
    assert about in ids(catalog, text=said)
    assert ids(catalog, text="'; DROP TABLE images; --") == []


def test_scores_limit_and_order_the_images_with_predictions(catalog: Catalog) -> None:
    sql = (
        "SELECT image_id FROM predictions WHERE stage = 'finetune' AND kind = 'answer' AND "
        "condition = 'real' GROUP BY ALL ORDER BY avg(score), image_id"
    )
    worst = query(catalog, sql)
    assert len(worst) >= 2
    assert ids(catalog, kind="answer", order="worst first") == worst
    assert set(ids(catalog, kind="answer", order="best first")) == set(worst)
    rows, _, _ = find_images(catalog, Filters(kind="answer", order="worst first"), 0, 1000)
    scores = [row["score"] for row in rows]
    assert scores == sorted(scores)
    assert scores[0] < scores[-1]
    least = {row["image_id"] for row in rows if row["score"] >= scores[-1]}
    assert set(ids(catalog, kind="answer", least=scores[-1])) == least
    assert ids(catalog, kind="answer", most=-1.0) == []


def test_a_reason_finds_the_images_that_lost_a_text(catalog: Catalog) -> None:
    known = choices(catalog)
    assert known["split"] == ["test", "train", "validation"]
    for reason in known["reason"]:
        assert ids(catalog, reason=reason)


def test_the_sql_that_is_shown_gives_the_same_rows(catalog: Catalog) -> None:
    filters = Filters(text="it's $split", split="test", least=0.1, order="best first")
    rows, _, sql = find_images(catalog, filters, 0, 1000)
    assert "'it''s $split'" in sql
    assert catalog.query(sql, printable=False).to_pylist() == rows == []
    rows, _, sql = find_images(catalog, Filters(split="test"), 0, 1000)
    assert rows
    assert catalog.query(sql, printable=False).to_pylist() == rows
    image = image_rows()[0]["image_id"]
    found = describe(catalog, image)
    first = found.sql.split(";\n")[0]
    assert catalog.query(first, printable=False).to_pylist() == [found.row]


def test_a_detail_has_texts_objects_predictions_and_drops(catalog: Catalog) -> None:
    image = query(catalog, "SELECT image_id FROM predictions WHERE kind = 'caption' LIMIT 1")[0]
    found = describe(catalog, image)
    captions = query(catalog, f"SELECT caption FROM captions WHERE image_id = {image}")
    assert set(captions) <= set(found.texts)
    conditions = {row["condition"] for row in found.predictions}
    assert {"real", "shuffled", "blind"} <= conditions
    assert hashes_of(catalog, [image]) == {image: found.row["sha256"]}


def test_a_run_without_evaluation_is_explored_all_the_same(tmp_path: Path) -> None:
    store = build_store(tmp_path)
    catalog = Catalog(store)
    rows, total, _ = find_images(catalog, Filters(), 0, 5)
    assert total >= len(rows) > 0
    from flows.explore.queries import matching

    sql, _ = matching(Filters(order="best first"), ["images"])
    assert "WHERE false" in sql
    assert "i.place" in sql


def test_images_are_read_by_hash_and_unknown_ones_left_out(catalog: Catalog) -> None:
    wanted = [row["sha256"] for row in image_rows()]
    read = StoredImages(catalog).read([*wanted, "0" * 64])
    assert set(read) <= set(wanted)
    assert read
    assert all(small(data, PIXELS) is not None for data in read.values())


def test_marked_objects_are_drawn_where_they_are() -> None:
    stream = io.BytesIO()
    Image.new("RGB", (2 * LARGE, LARGE), "white").save(stream, "PNG")
    box = {"category": "cat", "x": 200, "y": 100, "width": 400, "height": 300}
    drawn = marked(stream.getvalue(), PIXELS, [box])
    assert drawn is not None
    assert drawn.size == (LARGE, LARGE // 2)
    assert drawn.getpixel((100, 120)) != (255, 255, 255)  # its left edge, at half the size
    assert drawn.getpixel((500, 300)) == (255, 255, 255)
    assert marked(b"no image", PIXELS, []) is None
    assert small(b"no image", PIXELS) is None


def test_any_is_no_name_of_a_value(catalog: Catalog) -> None:
    assert all(ANY not in names for names in choices(catalog).values())


def test_images_of_many_files_come_after_their_list(
    catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = pytest.importorskip("flows.explore.page", reason="the explorer needs the extra `chat`")
    explorer = page.Explorer(catalog, Settings())
    asked = ("", ANY, ANY, ANY, ANY, "caption", "real", "", "", "as stored")
    (whole,) = explorer.find(0, *asked)
    monkeypatch.setattr(page, "FEW_FILES", 0)
    first, last = explorer.find(0, *asked)
    assert first[1:5] == last[1:5] == whole[1:5]  # words, ids, start and SQL
    assert [label for _, label in first[0]] == [label for _, label in last[0]]
    assert {image.size for image, _ in first[0]} == {(64, 64)}
    assert len({image.size for image, _ in last[0]}) == len(image_rows())


def test_joined_tables_are_computed_once(catalog: Catalog) -> None:
    kept = KeptCatalog(catalog.store)
    assert kept.source("predictions") is kept.source("predictions")
    assert kept.query("SELECT * FROM predictions", printable=False) == catalog.query(
        "SELECT * FROM predictions", printable=False
    )
    assert find_images(kept, Filters(), 0, 7) == find_images(catalog, Filters(), 0, 7)
