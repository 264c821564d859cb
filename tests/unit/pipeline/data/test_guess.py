"""`--data PATH`: what lies there becomes the fields of a recipe, and each guess can be run."""

import csv
import json
import re
import shlex
from pathlib import Path

import pytest

from flows.cli import main
from flows.commands.options import preset_and_changes
from pipeline.data.guess import guess_data
from pipeline.errors import PipelineError
from pipeline.recipe.data_sources import MixtureImages
from pipeline.recipe.presets import preset
from pipeline.recipe.recipe_file import read_recipe_file
from tests.unit.pipeline.data.test_captioned_sources import (
    BYTES,
    PAIRS,
    WRITERS,
    Writer,
    as_bucket,
    as_coco,
    as_csv,
    as_json_lines,
    as_parquet,
    as_shards,
    as_text_files,
    as_zip,
    run,
    write_images,
)
from tests.unit.pipeline.data.test_captioned_sources import told as told_of

PAGE = Path(__file__).resolve().parents[4] / "docs" / "own-data.md"


def root_of(folder: Path) -> Path:
    """What a person would name: the one table or archive in a folder, else the folder."""
    named = [p for p in folder.iterdir() if p.name.startswith("pairs") or p.suffix == ".zip"]
    return named[0] if named else folder


@pytest.mark.parametrize(
    "writer", [w for w in WRITERS if w is not as_bucket], ids=lambda writer: writer.__name__
)
def test_a_guess_reads_all_pairs(tmp_path: Path, writer: Writer) -> None:
    writer(tmp_path / "data")
    guess = guess_data(str(root_of(tmp_path / "data")))
    recipe = preset("photos").override(guess.changes)
    _, out = run(recipe.images.source, tmp_path / "work")
    assert sorted(texts for _, texts in told_of(out).values()) == sorted(PAIRS.values())
    assert len(guess.rows) == 3
    assert "image 0, seen" in " ".join(guess.rows[0])


LINES = re.findall(r"^\| .* \| `(phivision .*--data .*)` \|$", PAGE.read_text(), re.MULTILINE)


@pytest.mark.parametrize("line", LINES)
def test_each_line_of_the_page_on_own_data_reads_what_it_says(
    tmp_path: Path, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    as_csv(tmp_path / "csv")
    as_json_lines(tmp_path / "json")
    as_parquet(tmp_path / "parquet")
    for name in ("csv/pairs.csv", "json/pairs.jsonl.gz", "parquet/pairs.parquet"):
        (tmp_path / name).rename(tmp_path / name.partition("/")[2])
    (tmp_path / "csv/images").rename(tmp_path / "images")
    as_text_files(tmp_path / "photos")
    as_shards(tmp_path / "shards")
    as_zip(tmp_path / "zipped")
    (tmp_path / "zipped/all.zip").rename(tmp_path / "photos.zip")
    as_coco(tmp_path / "coco")
    preset_name, _, data = shlex.split(line)[3:6]
    name, changes = preset_and_changes(preset_name, None, None, data)
    source = preset(name).override(changes).images.source
    _, out = run(source, tmp_path / "work")
    assert sorted(texts for _, texts in told_of(out).values()) == sorted(PAIRS.values())


def test_the_page_on_own_data_has_a_line_for_each_kind_and_a_whole_recipe(tmp_path: Path) -> None:
    assert len(LINES) >= 7
    found = []
    for shown in re.findall(r"^```yaml\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL):
        (tmp_path / "shown.yaml").write_text(shown)
        name, changes = read_recipe_file(tmp_path / "shown.yaml")
        found.append(preset(name or "demo").override(changes))
    near, unfit, table, talks, mixture, several = found
    assert several.conversations.max_images == 4
    assert talks.publish.metric == "answer_accuracy"
    assert len(near.examples.filters) == 2
    assert unfit.features.clip_scores
    assert table.images.source.kind == "table"
    assert isinstance(mixture.images.source, MixtureImages)
    assert list(mixture.images.source.sources) == ["coco", "gqa", "ocr_vqa", "textvqa", "vg"]
    assert mixture.conversations.source.kind == "mixture"
    assert mixture.conversations.text_only == "keep"


def test_cocos_layout_is_recognised(tmp_path: Path) -> None:
    as_coco(tmp_path / "data")
    guess = guess_data(str(tmp_path / "data"))
    assert guess.changes["images.source.kind"] == "folder"
    assert len(told_of(run(preset("photos").override(guess.changes).images.source, tmp_path)[1]))


def test_an_image_folder_of_hugging_face_is_read_by_its_metadata(tmp_path: Path) -> None:
    write_images(tmp_path / "data")
    with (tmp_path / "data/metadata.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["file_name", "text", "subset"])
        writer.writerows([name, texts[0], "test"] for name, texts in PAIRS.items())
    changes = guess_data(str(tmp_path / "data")).changes
    source = {k.removeprefix("images.source."): v for k, v in changes.items() if "source" in k}
    assert source["root"] == "."
    assert (source["image"], source["caption"], source["split"]) == ("file_name", "text", "subset")


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, "0 images and no captions beside them"),
        ({"a.jpg": b"", "b.jpg": b""}, "2 images and no captions beside them"),
        ({"pairs.csv": b"picture,caption\na.jpg,x\n"}, "named like an image; it has picture"),
        ({"pairs.csv": b"image,label\na.jpg,x\n"}, "named like a caption; it has image, label"),
        ({"pairs.csv": b"image,caption\nz.jpg,x\n"}, r"'z\.jpg', the image of the first row"),
        ({"notes.docx": b""}, "has no known dataset format"),
    ],
    ids=["empty", "silent", "image", "caption", "lost", "other"],
)
def test_what_cannot_be_guessed_is_said(
    tmp_path: Path, files: dict[str, bytes], words: str
) -> None:
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    named = [name for name in files if name.startswith(("pairs", "notes"))]
    with pytest.raises(PipelineError, match=words):
        guess_data(str(tmp_path / named[0] if named else tmp_path))
    with pytest.raises(PipelineError, match="no such file or folder"):
        guess_data(str(tmp_path / "nowhere"))


def test_the_command_prints_what_it_found_and_writes_a_recipe(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_images(tmp_path / "images")
    lines = [json.dumps({"image": name, "caption": PAIRS[name][0]}) for name in BYTES]
    (tmp_path / "mine.jsonl").write_text("\n".join(lines))
    main(["recipe", "--preset", "photos", "--data", str(tmp_path / "mine.jsonl"), "--format=yaml"])
    written, said = capsys.readouterr()
    assert "a table of 40 rows" in " ".join(said.split())
    assert "000.jpg" in said
    (tmp_path / "mine.yaml").write_text(written)
    main(["recipe", "--recipe", str(tmp_path / "mine.yaml")])
    fields = capsys.readouterr().out
    assert "phivision-mine" in fields
    assert "images.source.caption" in fields
