"""Every query of docs/queries.md runs as it stands and finds something."""

import re
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest

from pipeline.catalog.catalog import Catalog
from pipeline.catalog.catalog_file import export_catalog
from tests.support.small_store import build_store

PAGE = Path(__file__).resolve().parents[3] / "docs" / "queries.md"
QUERIES = re.findall(r"^\*\*(\d+\. .+?)\*\*.*?```sql\n(.*?)```", PAGE.read_text(), re.S | re.M)
NOTHING_FOUND = ("10. ", "11. ")  # copies of an image; images on both sides


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    return Catalog(build_store(tmp_path_factory.mktemp("queries")))


@pytest.fixture(scope="module")
def exported(
    catalog: Catalog, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[duckdb.DuckDBPyConnection]:
    path = tmp_path_factory.mktemp("exported") / "catalog.duckdb"
    export_catalog(catalog, path, copy=False)
    with duckdb.connect(path, read_only=True) as connection:
        yield connection


def test_every_query_of_the_page_is_run() -> None:
    assert len(QUERIES) == PAGE.read_text().count("```sql") == 22


@pytest.mark.parametrize(("title", "query"), QUERIES, ids=[title for title, _ in QUERIES])
def test_a_documented_query_finds_what_it_asks_for(
    catalog: Catalog, title: str, query: str
) -> None:
    with catalog.open(query) as database:
        found = database.read_only(query)
    assert bool(found.num_rows) is not title.startswith(NOTHING_FOUND)


PLAIN = [(title, query) for title, query in QUERIES if "patch_grid" not in query]


@pytest.mark.parametrize(("title", "query"), PLAIN, ids=[title for title, _ in PLAIN])
def test_another_client_finds_the_same_in_the_exported_file(
    catalog: Catalog, exported: duckdb.DuckDBPyConnection, title: str, query: str
) -> None:
    with catalog.open(query) as database:
        expected = database.read_only(query)
    found = exported.sql(query).to_arrow_table()
    assert found.num_rows == expected.num_rows
    if "ORDER BY" in query:
        assert found.to_pylist() == expected.to_pylist(), title


@pytest.mark.parametrize("view", ["patches", "second_patches"])
def test_the_exported_patches_have_the_keys_that_the_catalog_gives(
    catalog: Catalog, exported: duckdb.DuckDBPyConnection, view: str
) -> None:
    query = f"FROM {view} ORDER BY shard, row"
    with catalog.open(query) as database:
        expected = database.read_only(query).to_pylist()
    assert exported.sql(query).to_arrow_table().to_pylist() == expected


def test_each_view_is_described(catalog: Catalog) -> None:
    described = set(re.findall(r"`(\w+)`", PAGE.read_text().partition("## ")[0]))
    assert set(catalog.views()) <= described
