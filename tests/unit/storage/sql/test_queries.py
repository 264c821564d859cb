"""A database answers questions and does nothing else."""

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from storage.errors import StorageError
from storage.sql.queries import Database, predicate_fault, tables_of
from storage.tables import read_table, write_arrow, write_table

ROWS = pa.table({"image_id": [1, 2, 3], "caption": ["a cat", "it's", 'say "hi"']})


@pytest.fixture
def database() -> Iterator[Database]:
    with Database({"captions": ROWS}, views={"first": "SELECT * FROM captions LIMIT 1"}) as made:
        yield made


def unchanged(database: Database) -> bool:
    names = database.read_only("SHOW TABLES").column(0).to_pylist()
    rows = database.read_only("SELECT * FROM captions")
    view = database.read_only("SELECT * FROM first")
    return names == ["captions", "first"] and rows == ROWS and len(view) == 1


@pytest.mark.parametrize(
    ("sql", "rows"),
    [
        ("SELECT * FROM captions", 3),
        ("select caption from captions where image_id > 1;", 2),
        ("FROM captions", 3),
        ("WITH few AS (SELECT 1) SELECT * FROM few", 1),
        ("-- why\nSELECT 1", 1),
        ("DESCRIBE captions", 2),
        ("SUMMARIZE captions", 2),
        ("SHOW TABLES", 2),
        ("EXPLAIN SELECT * FROM captions", 1),
        ("EXPLAIN ANALYZE SELECT * FROM captions", 1),
        ("/* é */ explain /* é */ analyze SELECT 'é' FROM captions", 1),
        ("PIVOT captions ON image_id IN (1, 2) USING count(*)", 3),
        ("SELECT ';' || 'DROP VIEW captions'", 1),
    ],
)
def test_reading_works(database: Database, sql: str, rows: int) -> None:
    assert len(database.read_only(sql)) == rows


@pytest.mark.parametrize(
    "sql",
    [
        "DROP VIEW captions",
        "COPY captions TO 'copy.csv'",
        "ATTACH 'other.db'",
        "EXPORT DATABASE 'there'",
        "IMPORT DATABASE 'there'",
        "CREATE TABLE more AS SELECT 1",
        "CREATE OR REPLACE VIEW captions AS SELECT 1",
        "CREATE MACRO lower(t) AS 'x'",
        "INSERT INTO captions VALUES (4, 'x')",
        "UPDATE captions SET caption = 'x'",
        "DELETE FROM captions",
        "ALTER VIEW captions RENAME TO gone",
        "SET threads = 1",
        "RESET threads",
        "SET VARIABLE x = 1",
        "PRAGMA threads = 1",
        "PRAGMA enable_external_access = true",
        "PRAGMA import_database('there')",
        "PRAGMA disable_verification",
        "CALL truncate_duckdb_logs()",
        "CHECKPOINT",
        "INSTALL httpfs",
        "LOAD httpfs",
        "BEGIN",
        "PREPARE later AS SELECT 1",
        "PIVOT captions ON image_id USING count(*)",
        "CREATE TABLE more AS PIVOT captions ON image_id USING count(*)",
        "SELECT 1; SELECT 2",
        "SELECT 1; DROP VIEW captions",
        "EXPLAIN DROP VIEW captions",
        "EXPLAIN ANALYZE DROP VIEW captions",
        "EXPLAIN ANALYZE CREATE TABLE more AS SELECT 1 AS a",
        "/*é*/ EXPLAIN /**/ ANALYZE -- é\n DROP VIEW captions",
        "EXPLAIN (ANALYZE) DROP VIEW captions",
        "EXPLAIN EXPLAIN ANALYZE DROP VIEW captions",
        "",
        " -- nothing\n;",
    ],
)
def test_writing_is_refused(
    database: Database, sql: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StorageError):
        database.read_only(sql)
    assert unchanged(database)
    assert list(tmp_path.iterdir()) == []


def test_a_refused_statement_says_what_can_be_run(database: Database) -> None:
    with pytest.raises(StorageError, match="exactly one SELECT, DESCRIBE, SUMMARIZE, SHOW"):
        database.read_only("DROP VIEW captions")


def test_a_pivot_without_values_says_what_it_needs(database: Database) -> None:
    with pytest.raises(StorageError, match=r"creates a type.*\n.* PIVOT t ON c IN \('a', 'b'\)"):
        database.read_only("PIVOT captions ON image_id USING count(*)")


def test_files_of_the_machine_cannot_be_read(database: Database, tmp_path: Path) -> None:
    parquet = tmp_path / "rows.parquet"
    write_arrow(parquet, ROWS)
    (tmp_path / "rows.csv").write_text("a\n1\n")
    for source in (
        "read_csv('/etc/passwd')",
        f"read_csv('{tmp_path}/rows.csv')",
        f"read_parquet('{parquet}')",
        f"'{parquet}'",
        f"read_text('{tmp_path}/rows.csv')",
        f"read_blob('{parquet}')",
        f"glob('{tmp_path}/*')",
    ):
        with pytest.raises(StorageError, match="SQL"):
            database.read_only(f"SELECT * FROM {source}")


def test_tables_of_the_calling_program_cannot_be_read(database: Database) -> None:
    hidden = pa.table({"secret": [1]})
    assert len(hidden) == 1
    with pytest.raises(StorageError, match="hidden"):
        database.read_only("SELECT * FROM hidden")


def test_nonsense_is_answered_in_duckdbs_words(database: Database) -> None:
    with pytest.raises(StorageError, match="syntax error"):
        database.read_only("SELEC 1")
    with pytest.raises(StorageError, match="captoins"):
        database.read_only("SELECT * FROM captoins")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("DATE '290000-01-01'", "290000-01-01"),
        ("'infinity'::TIMESTAMP", "infinity"),
        ("'-infinity'::TIMESTAMPTZ", "-infinity"),
        ("INTERVAL 14 MONTHS", "1 year 2 months"),
        ("TIME '12:30:00.5'", "12:30:00.5"),
        ("[DATE '290000-01-01', NULL]", ["290000-01-01", None]),
        ("[DATE '2024-02-29']::DATE[1]", ["2024-02-29"]),
        ("{'size': 7, 'a \"b\"': DATE '290000-01-01'}", {"size": 7, 'a "b"': "290000-01-01"}),
        ("MAP {DATE '290000-01-01': 1}", [("290000-01-01", 1)]),
        ("union_value(day := DATE '290000-01-01')", "290000-01-01"),
        ("340282366920938463463374607431768211455::UHUGEINT", str(2**128 - 1)),
        ("7", 7),
        ("{'a': [1.5]}", {"a": [1.5]}),
    ],
)
def test_what_only_duckdb_can_print_is_text(database: Database, value: str, text: object) -> None:
    shown = database.printable(f"SELECT {value} AS day, image_id AS day FROM captions ORDER BY 2")
    assert shown["day"].to_pylist() == [text] * 3
    assert shown["day_1"].to_pylist() == [1, 2, 3]


def test_every_type_of_duckdb_can_be_printed(
    database: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    from flows.commands.sql import _csv, _json, print_result

    shown = database.printable("SELECT * FROM test_all_types()")
    assert len(json.loads(_json(shown))) == 3
    assert len(list(csv.reader(io.StringIO(_csv(shown))))) == 4
    print_result(shown)
    assert "290309-12-22 (BC) 00:00:00" in capsys.readouterr().out


def test_what_is_printed_is_read_only_too(database: Database) -> None:
    with pytest.raises(StorageError, match="exactly one SELECT"):
        database.printable("DROP VIEW captions")
    with pytest.raises(StorageError, match="captoins"):
        database.printable("SELECT * FROM captoins")
    assert unchanged(database)


def test_half_a_character_is_refused_in_one_line(database: Database) -> None:
    with pytest.raises(StorageError, match="not valid Unicode"):
        database.read_only("SELECT '\ud800'")


def test_half_a_character_names_no_table() -> None:
    assert tables_of("SELECT '\ud800' FROM captions") is None
    assert tables_of("SELECT 'é' FROM Captions") == {"captions"}


@pytest.mark.parametrize("predicate", ["caption AS text", "caption) OR (true"])
def test_an_expression_that_is_no_condition_is_answered_in_duckdbs_words(predicate: str) -> None:
    assert "syntax error" in predicate_fault(predicate)


def test_parameters_are_values_and_never_sql(database: Database) -> None:
    text = "x'; DROP VIEW captions; --"
    found = database.query("SELECT $text AS t", {"text": text})
    assert found["t"].to_pylist() == [text]
    assert unchanged(database)


def test_several_parquet_files_are_one_relation(tmp_path: Path) -> None:
    paths = [tmp_path / f"{number} it's.parquet" for number in range(2)]
    for path in paths:
        write_arrow(path, ROWS)
    with Database({"captions": paths}) as made:
        assert made.read_only("SELECT count(*) AS n FROM captions")["n"].to_pylist() == [6]


def test_macros_and_views_are_made_in_order() -> None:
    with Database(
        {"t": ROWS},
        views={"a": "SELECT twice(image_id) AS d FROM t", "b": "SELECT max(d) AS top FROM a"},
        macros=["CREATE MACRO twice(x) AS 2 * x"],
        threads=1,
    ) as made:
        assert made.names == ["t", "a", "b"]
        assert made.read_only("FROM b")["top"].to_pylist() == [6]


# -- tables ----------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["one", 2**70, [1]])
def test_a_row_that_does_not_fit_is_refused_and_nothing_is_written(
    tmp_path: Path, value: object
) -> None:
    rows = [{"image_id": 1, "caption": "a cat"}, {"image_id": value, "caption": "a dog"}]
    with pytest.raises(StorageError, match=r"rows for captions\.parquet do not fit their schema"):
        write_table(tmp_path / "captions.parquet", rows, ROWS.schema)
    assert list(tmp_path.iterdir()) == []


def test_a_torn_table_names_the_file_and_the_remedy(tmp_path: Path) -> None:
    path = tmp_path / "captions.parquet"
    write_arrow(path, ROWS)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(StorageError, match=r"captions\.parquet cannot .*\n.*phivision verify"):
        read_table(path)
