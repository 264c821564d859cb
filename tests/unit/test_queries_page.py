"""Every query of docs/queries.md runs as it stands and finds something."""

import re
from pathlib import Path

import pytest

from storage.catalog import Catalog
from tests.unit.small_store import build_store

PAGE = Path(__file__).resolve().parents[2] / "docs" / "queries.md"
QUERIES = re.findall(r"^\*\*(\d+\. .+?)\*\*.*?```sql\n(.*?)```", PAGE.read_text(), re.S | re.M)
NOTHING_FOUND = ("10. ", "11. ")  # copies of a picture; pictures on both sides


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    return Catalog(build_store(tmp_path_factory.mktemp("queries")))


def test_there_are_fifteen_and_five() -> None:
    assert len(QUERIES) == 20
    assert PAGE.read_text().count("```sql") == 20


@pytest.mark.parametrize(("title", "query"), QUERIES, ids=[title for title, _ in QUERIES])
def test_a_documented_query_finds_what_it_asks_for(
    catalog: Catalog, title: str, query: str
) -> None:
    with catalog.open(query) as database:
        found = database.read_only(query)
    assert bool(found.num_rows) is not title.startswith(NOTHING_FOUND)


def test_each_view_is_described(catalog: Catalog) -> None:
    described = set(re.findall(r"`(\w+)`", PAGE.read_text().partition("## ")[0]))
    assert set(catalog.views()) <= described
