"""Which images an assistant is tried with."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flows.commands.example_images import write_examples
from pipeline.publishing.export import Lineage, trace
from storage.store.artifacts import ArtifactStore
from tests.support.store_fixtures import add, payload
from tests.support.tiny_bundle import image


def table(folder: Path, rows: list[dict[str, object]]) -> bytes:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "table.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path.read_bytes()


def made(store: ArtifactStore, folder: Path, colour: str) -> Lineage:
    """Commit images of one colour, questions about them, and an assistant made of them."""
    files = [{"sha256": f"{colour}{n}", "data": image(colour)} for n in range(3)]
    questions = [
        {"image_id": n, "sha256": f"{colour}{n}", "split": split, "question": f"{text} {colour}?"}
        for n, split in enumerate(("train", "test", "test"))
        for text in ("Count the", "Is it")
    ]
    images = add(
        store, folder, {"files-0.parquet": table(folder, files)}, payload("images", seed=colour)
    )
    examples = add(
        store,
        folder,
        {"questions.parquet": table(folder, questions)},
        payload("examples", inputs={"images": images.digest}),
    )
    inputs = {"examples": examples.digest}
    return trace(
        store, add(store, folder, {"bundle.json": b"{}"}, payload("publish", inputs=inputs))
    )


def test_they_are_held_out_ones_of_the_assistants_own_data(
    local: ArtifactStore, tmp_path: Path
) -> None:
    published = made(local, tmp_path / "made", "red")
    made(local, tmp_path / "made", "blue")  # a later run, which was not published
    assert write_examples(published, tmp_path / "out", 3) == 2
    listed = json.loads((tmp_path / "out" / "examples.json").read_text())
    assert [each["question"] for each in listed] == ["Count the red?", "Is it red?"]
    for each in listed:
        assert (tmp_path / "out" / each["image"]).read_bytes() == image("red")


@pytest.mark.parametrize("stage", ["images", "examples"])
def test_there_are_none_where_the_data_is_gone(
    local: ArtifactStore, tmp_path: Path, stage: str
) -> None:
    published = made(local, tmp_path / "made", "red")
    del published.manifests[stage]
    assert write_examples(published, tmp_path / "out", 3) == 0
    assert not (tmp_path / "out").exists()
