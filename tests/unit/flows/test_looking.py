"""Statements on the catalog, its file, similar images, and comparing variants of a recipe."""

import errno
import json
import os
from pathlib import Path

import duckdb
import pytest

from flows.cli import main
from flows.commands.compare import read_grid, read_variants
from flows.compare_table import markdown, measure
from flows.similar_images import find_similar
from pipeline.catalog.catalog import Catalog
from pipeline.catalog.catalog_file import export_catalog
from pipeline.errors import PipelineError
from pipeline.settings import Settings
from storage.errors import StorageError
from storage.store.artifacts import ArtifactStore
from storage.store.runs import read_runs
from tests.support.small_store import bare_run, build_store, image, image_rows


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ArtifactStore:
    return build_store(tmp_path_factory.mktemp("looking"))


# -- views -----------------------------------------------------------------------------------


def test_predictions_know_their_image_and_example(store: ArtifactStore) -> None:
    sql = (
        "SELECT kind, file_name, width, e.kind AS example FROM predictions p "
        "LEFT JOIN examples e USING (example_id) WHERE p.condition = 'real' AND p.image_id = 108 "
        "ORDER BY p.kind"
    ).replace("SELECT kind", "SELECT p.kind")
    with Catalog(store).open(sql) as database:
        rows = database.read_only(sql).to_pylist()
    known = {"file_name": "000000000108.png", "width": 72}
    assert rows == [
        {"kind": "answer", **known, "example": "conversation"},
        {"kind": "caption", **known, "example": None},
    ]


def test_predictions_are_neither_lost_nor_doubled_by_the_join(store: ArtifactStore) -> None:
    with Catalog(store).open(names=("predictions",)) as database:
        ids = database.query("SELECT prediction_id FROM predictions")["prediction_id"].to_pylist()
    assert ids == list(range(72))


def test_metrics_show_every_run(store: ArtifactStore) -> None:
    with Catalog(store).open("FROM metrics") as database:
        found = database.query("SELECT DISTINCT run FROM metrics")["run"].to_pylist()
    assert set(found) == {record["run"] for record in read_runs(store)}


def test_every_view_can_be_summarized(store: ArtifactStore) -> None:
    catalog = Catalog(store)
    for view in catalog.views():
        sql = f"SUMMARIZE {view}"
        with catalog.open(sql) as database:
            assert database.read_only(sql).num_rows > 0


def test_all_views_are_opened_where_none_is_named(store: ArtifactStore) -> None:
    catalog = Catalog(store)
    with catalog.open() as database:
        assert sorted(database.names) == sorted(catalog.views())


def test_an_artifact_that_is_gone_gives_way_to_the_newest_there_is(tmp_path: Path) -> None:
    store = build_store(tmp_path)
    newest, older = (record["stages"]["evaluate"]["fingerprint"] for record in read_runs(store))
    shown = Catalog(store).manifest("evaluate")
    assert shown is not None
    assert shown.fingerprint == newest
    store.files.remove(f"manifests/evaluate/{newest}.json")
    instead = Catalog(store).manifest("evaluate")
    assert instead is not None
    assert instead.fingerprint == older


def test_a_view_is_opened_where_it_is_read_not_where_its_name_is_a_word(
    tmp_path: Path,
) -> None:
    catalog = Catalog(bare_run(tmp_path))
    for sql in (
        "SELECT stage, files FROM artifacts",
        "SELECT 'examples' AS word, count(*) FROM captions",
        "SELECT features.split FROM Images AS features",
        "EXPLAIN ANALYZE SELECT files FROM artifacts",
    ):
        with catalog.open(sql) as database:
            assert not {"files", "examples", "features"} & set(database.names)
            assert database.read_only(sql).num_rows
    for sql in ("SELECT 1 FROM Examples", "DESCRIBE examples", 'EXPLAIN FROM "examples"'):
        with pytest.raises(StorageError, match="the view examples is empty"):
            catalog.open(sql)
    with catalog.open("FROM query_table('captions')") as database:
        assert database.names == ["captions"]


@pytest.mark.parametrize("name", ["latest", "first", "start"])
def test_a_run_may_be_named_by_tag_or_start(
    store: ArtifactStore, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    newest, oldest = (record["run"] for record in read_runs(store))
    main(["tag", "first", oldest, "--store", store.uri])
    wanted = {"latest": newest, "first": oldest, "start": oldest[:6]}[name]
    word = wanted if name == "start" else name
    capsys.readouterr()
    sql = "SELECT sum(score) AS total FROM predictions"
    main(["sql", sql, "--store", store.uri, "--run", word, "--format", "csv"])
    printed = capsys.readouterr().out
    with Catalog(store, newest if name == "latest" else oldest).open(sql) as database:
        assert printed.split() == ["total", str(database.read_only(sql)["total"][0].as_py())]
    main(["browse", "--store", store.uri, "--run", word, "--output", str(tmp_path / "p.html")])
    main(["catalog", str(tmp_path / "c.duckdb"), "--store", store.uri, "--run", word])
    assert (tmp_path / "p.html").is_file()
    assert (tmp_path / "c.duckdb").is_file()


# -- one statement ---------------------------------------------------------------------------


def test_tables_can_be_listed_in_one_statement(
    store: ArtifactStore, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["sql", "SHOW TABLES", "--store", store.uri, "--format", "csv"])
    assert set(Catalog(store).views()) <= set(capsys.readouterr().out.split())


def test_few_wide_rows_are_printed_one_below_the_other(
    store: ArtifactStore, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    main(["sql", "FROM predictions LIMIT 2", "--store", store.uri])
    text = capsys.readouterr().out
    assert "─ row 2" in text
    assert all(len(line) <= 80 for line in text.splitlines())
    main(["sql", "SELECT 1 AS a, 2 AS b", "--store", store.uri])
    assert "row" not in capsys.readouterr().out


def test_bytes_are_hexadecimal_and_what_is_no_number_is_null(
    store: ArtifactStore, capsys: pytest.CaptureFixture[str]
) -> None:
    sql = (
        "SELECT '\\xFF\\x01'::BLOB AS data, ['\\x00'::BLOB] AS many, 'nan'::DOUBLE AS n, "
        "{'low': '-inf'::FLOAT, 'high': 2::FLOAT} AS bounds, MAP {'a': 'inf'::DOUBLE} AS pairs"
    )
    main(["sql", sql, "--store", store.uri, "--format", "json"])
    assert json.loads(capsys.readouterr().out, parse_constant=pytest.fail) == [
        {
            "data": "ff01",
            "many": ["00"],
            "n": None,
            "bounds": {"low": None, "high": 2.0},
            "pairs": [["a", None]],
        }
    ]
    main(["sql", sql, "--store", store.uri, "--format", "csv"])
    line = capsys.readouterr().out.splitlines()[1]
    assert line.startswith("ff01,['00'],nan,")


def test_columns_of_one_name_are_told_apart(
    store: ArtifactStore, capsys: pytest.CaptureFixture[str]
) -> None:
    sql = "SELECT 1 AS a, 2 AS a_1, 3 AS a"
    main(["sql", sql, "--store", store.uri, "--format", "csv"])
    assert capsys.readouterr().out == "a,a_1,a_2\n1,2,3\n"
    main(["sql", sql, "--store", store.uri, "--format", "json"])
    assert json.loads(capsys.readouterr().out) == [{"a": 1, "a_1": 2, "a_2": 3}]


@pytest.mark.parametrize("comment", ["-- note", "--format = json", "--", "---s"])
def test_a_query_may_begin_with_a_comment(
    store: ArtifactStore, capsys: pytest.CaptureFixture[str], comment: str
) -> None:
    query = f"{comment}\nSELECT 40 + 2 AS n"
    main(["sql", query, "--store", store.uri, "--format", "csv"])
    assert capsys.readouterr().out == "n\n42\n"


@pytest.mark.parametrize("arguments", [["--fromat=csv"], ["--fromat"], ["-x", "SELECT 1"]])
def test_a_mistyped_option_is_no_query(
    store: ArtifactStore, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["sql", "--store", store.uri, *arguments])
    assert ended.value.code == 2
    assert "--help" in capsys.readouterr().err


# -- a file for other clients ----------------------------------------------------------------


@pytest.mark.parametrize("copy", [False, True])
def test_the_plain_client_opens_the_catalog_file(
    store: ArtifactStore, tmp_path: Path, copy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "it's here" / "catalog.duckdb"
    monkeypatch.chdir(tmp_path)
    main(["catalog", str(path), "--store", store.uri, *(["--copy"] if copy else [])])
    main(["catalog", str(path), "--store", store.uri, *(["--copy"] if copy else [])])
    with duckdb.connect(path, read_only=True) as connection:
        names = {row[0] for row in connection.sql("SHOW TABLES").fetchall()}
        bulky = {"files", "patches", "second_patches"} if copy else set()
        assert names == set(Catalog(store).views()) - bulky
        joined = connection.sql(
            "SELECT count(*) FROM predictions p JOIN images USING (image_id) "
            "JOIN metrics m ON m.condition = p.condition"
        )
        assert joined.fetchall()[0][0] > 0
    assert [each.name for each in path.parent.iterdir()] == ["catalog.duckdb"]


def test_a_file_that_is_something_else_is_kept(store: ArtifactStore, tmp_path: Path) -> None:
    path = tmp_path / "thesis.txt"
    path.write_text("years of work")
    with pytest.raises(SystemExit):
        main(["catalog", str(path), "--store", store.uri])
    assert path.read_text() == "years of work"


def test_a_folder_is_not_replaced_by_a_catalog(store: ArtifactStore, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="is not a DuckDB file"):
        export_catalog(Catalog(store), tmp_path, copy=False)


def test_a_catalog_below_a_file_is_refused(store: ArtifactStore, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"catalog\.duckdb cannot be written"):
        export_catalog(Catalog(store), tmp_path / "file" / "catalog.duckdb", copy=False)


def test_a_view_without_rows_is_left_out_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "catalog.duckdb"
    names = export_catalog(Catalog(bare_run(tmp_path)), path, copy=False)
    assert {"images", "captions", "runs"} <= set(names)
    assert not {"predictions", "features", "metrics"} & set(names)
    with duckdb.connect(path, read_only=True) as connection:
        assert {row[0] for row in connection.sql("SHOW TABLES").fetchall()} == set(names)


def test_a_catalog_that_cannot_be_written_is_told_in_one_line(
    store: ArtifactStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*paths: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = tmp_path / "catalog.duckdb"
    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(StorageError, match=r"catalog\.duckdb cannot be written: .*No space left"):
        export_catalog(Catalog(store), path, copy=False)
    assert list(tmp_path.iterdir()) == []


def test_views_cannot_point_into_a_remote_store(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["catalog", str(tmp_path / "c.duckdb"), "--store", "memory://nobody-here"])
    assert "--copy" in capsys.readouterr().err


# -- similar images ------------------------------------------------------------------------


def test_the_nearest_images_come_first(store: ArtifactStore, tmp_path: Path) -> None:
    catalog, settings = Catalog(store), Settings()
    rows = find_similar(catalog, "100", 3, settings)
    assert [row["image_id"] for row in rows] == [101, 102, 103]
    assert rows[0]["similarity"] > rows[1]["similarity"] > rows[2]["similarity"]
    assert rows[0]["caption"] == "A green square."
    path = tmp_path / "100"  # a file that is named like an id
    path.write_bytes(image(0))
    assert find_similar(catalog, str(path), 3, settings) == rows


def test_the_other_end_has_the_other_neighbours(store: ArtifactStore) -> None:
    last = str(image_rows()[-1]["image_id"])
    assert find_similar(Catalog(store), last, 1, Settings())[0]["image_id"] == int(last) - 1


@pytest.mark.parametrize("image", ["5", "nowhere.jpg"])
def test_an_image_that_is_not_there_is_told(
    store: ArtifactStore, image: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["similar", image, "--store", store.uri])
    assert image in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [["similar", "100", "--count"], ["browse", "--drops"], ["report", "--images"]]
)
def test_less_than_nothing_is_wrong_usage(
    store: ArtifactStore, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "-1", "--store", store.uri])
    assert ended.value.code == 2
    told = capsys.readouterr().err
    assert 'Invalid value "-1"' in told
    assert arguments[-1] in told


def test_no_images_at_all_may_be_asked_for(
    store: ArtifactStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "report.html"
    main(["report", "--images", "0", "--store", store.uri, "--output", str(path)])
    main(["similar", "100", "--count", "0", "--store", store.uri])
    assert "data:image/jpeg" not in path.read_text()
    assert "similarity" in capsys.readouterr().out


# -- comparing -------------------------------------------------------------------------------


def test_a_grid_crosses_its_values() -> None:
    grid = read_grid(["finetune.epochs=1,2", 'pretrain.projector=[{"kind": "linear"}, null]'])
    assert list(grid) == [
        'epochs=1, projector={"kind": "linear"}',
        "epochs=1, projector=null",
        'epochs=2, projector={"kind": "linear"}',
        "epochs=2, projector=null",
    ]
    assert grid["epochs=2, projector=null"] == {"finetune.epochs": "2", "pretrain.projector": None}
    assert read_grid([]) == {}


def test_fields_with_the_same_last_part_are_told_apart() -> None:
    grid = read_grid(["pretrain.epochs=1", "finetune.epochs=2", "finetune.batch=8"])
    assert list(grid) == ["pretrain.epochs=1, finetune.epochs=2, batch=8"]
    with pytest.raises(PipelineError, match=r"names finetune\.batch twice"):
        read_grid(["finetune.batch=8", "finetune.batch=9"])


def test_variants_have_names_and_changes() -> None:
    found = read_variants(["base:", "small one: finetune.epochs=1 finetune.batch=8"])
    assert found == {
        "base": {},
        "small one": {"finetune.epochs": "1", "finetune.batch": "8"},
    }


@pytest.mark.parametrize("text", ["finetune.epochs=1", ": a=1", "nothing", "twice: a=1"])
def test_a_variant_without_a_name_of_its_own_is_refused(text: str) -> None:
    with pytest.raises(PipelineError, match="no name of its own"):
        read_variants(["twice: b=1", text])


@pytest.mark.parametrize("arguments", [[], ["--variant", "one:"], ["--grid", "finetune.epochs=1"]])
def test_one_variant_is_no_comparison(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["compare", *arguments, "--store", str(tmp_path / "none")])
    assert "cannot be compared" in capsys.readouterr().err


def test_a_wrong_field_is_refused_before_any_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--grid", "finetune.epohcs=1,2", "--store", str(tmp_path / "none")]
    with pytest.raises(SystemExit):
        main(["compare", *arguments])
    assert "finetune.epochs" in capsys.readouterr().err
    assert not (tmp_path / "none" / "artifacts").exists()


def test_the_table_tells_scores_and_paired_differences(store: ArtifactStore) -> None:
    second, first = (record["run"] for record in read_runs(store))
    rows = [
        measure(store, "three", {}, first, first),
        measure(store, "four", {"finetune.epochs": 4}, second, first),
    ]
    assert json.loads(json.dumps(rows)) == rows
    assert rows[0]["differences"] == {}
    gain = rows[1]["differences"]["answer_accuracy"]
    scores = [row["metrics"]["answer_accuracy"]["value"] for row in rows]
    assert gain["value"] == pytest.approx(scores[1] - scores[0])
    assert gain["low"] <= gain["value"] <= gain["high"]
    table = markdown(rows).splitlines()
    assert [line.count("|") for line in table] == [table[0].count("|")] * 4
    assert table[3].startswith("| four | ")
    assert table[0].count("against three") == 2


def test_a_run_that_does_not_exist_is_told(store: ArtifactStore) -> None:
    with pytest.raises(StorageError, match="there is no run 'nobody'"):
        Catalog(store, "nobody")


def test_many_wide_rows_are_one_table_as_duckdb_prints_it(
    store: ArtifactStore, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    main(["sql", "SUMMARIZE predictions", "--store", store.uri])
    lines = capsys.readouterr().out.splitlines()
    assert all(len(line) <= 80 for line in lines)
    assert len([line for line in lines if line.startswith("│ prediction")]) == 2
    assert "21 rows" in lines[-2]
    assert "--format csv prints every column" in lines[-1]


@pytest.mark.parametrize(
    ("written", "said"),
    [("exampels", "did you mean examples?"), ("zzz", "views: images, captions")],
)
def test_a_misspelt_view_is_told_with_the_nearest_of_ours(
    store: ArtifactStore, capsys: pytest.CaptureFixture[str], written: str, said: str
) -> None:
    with pytest.raises(SystemExit):
        main(["sql", f"SELECT * FROM {written}", "--store", store.uri])
    told = capsys.readouterr().err
    assert f"there is no view {written}" in told
    assert said in told
    assert "pg_" not in told


def test_show_labels_every_value_and_draws_nothing_into_a_pipe(
    store: ArtifactStore, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["show", "--store", store.uri])
    text = capsys.readouterr().out
    assert "▀" not in text
    for heading in ("caption_id", "category", "patch_norm", "turns", "condition"):
        assert heading in text
    assert "None" not in text
