"""Known tokens that are damaged, gone, or found through a real store."""

from hashlib import sha256
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline.data import examples as stage
from pipeline.data.known_tokens import KnownTokens
from pipeline.engine.dag import BY_NAME
from pipeline.engine.materialize import Outcome, materialize
from pipeline.engine.processes import Files
from pipeline.engine.stage import StageContext
from pipeline.recipe.presets import preset
from pipeline.settings import Settings
from storage.errors import StorageError
from storage.store.artifacts import ArtifactStore
from storage.store.commits import Provenance, commit
from storage.store.manifest import Manifest, fingerprint_of
from storage.store.verify import committed, verify
from storage.tables import TableWriter, read_table
from tests.support.fake_stages import Quiet
from tests.support.training_inputs import context_of, files_of
from tests.unit.pipeline.data.test_examples import COUNT
from tests.unit.pipeline.data.test_known_tokens import add, content, make, talk_of, write_inputs


@pytest.fixture
def inputs(tmp_path: Path, tiny_bundle: Path) -> Path:
    return write_inputs(tmp_path / "in", tiny_bundle)


@pytest.mark.parametrize("name", ["examples.parquet", "token_keys.parquet"])
@pytest.mark.parametrize("damage", ["half", "flipped", "gone"])
def test_a_damaged_artifact_is_as_none(
    inputs: Path, tmp_path: Path, name: str, damage: str
) -> None:
    summary = make(inputs, tmp_path / "before")
    expected, path = content(tmp_path / "before"), tmp_path / "before/out" / name
    known = files_of(path.parent)
    spoil(path, damage)
    assert make(inputs, tmp_path / "after", known) == summary
    assert content(tmp_path / "after") == expected


@pytest.mark.parametrize("damage", ["half", "flipped"])
def test_a_damaged_piece_of_a_killed_run_is_as_none(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    monkeypatch.setattr(stage, "_CAPTIONS_AT_ONCE", 6)
    monkeypatch.setattr(stage, "_TALKS_AT_ONCE", 6)
    summary, pieces = make(inputs, tmp_path / "work"), tmp_path / "work/scratch"
    expected = content(tmp_path / "work")
    spoil(sorted(pieces.rglob("piece-*"))[1], damage)
    assert make(inputs, tmp_path / "work") == summary | {"tokenized": 6}
    assert content(tmp_path / "work") == expected
    assert make(inputs, tmp_path / "work")["tokenized"] == 0


def spoil(path: Path, damage: str) -> None:
    data = bytearray(path.read_bytes())
    if damage == "gone":
        path.unlink()
    elif damage == "half":
        path.write_bytes(data[: len(data) // 2])
    else:
        group = pq.read_metadata(path).row_group(0)
        chunks = [group.column(number) for number in range(group.num_columns)]
        at = {each.path_in_schema.partition(".")[0]: each.dictionary_page_offset for each in chunks}
        data[at["key" if "key" in at else "input_ids"] + 60] ^= 255
        path.write_bytes(data)


def test_keys_without_rows_are_not_followed(inputs: Path, tmp_path: Path) -> None:
    """A store that lost a file may hold another one in its place."""
    make(inputs, tmp_path / "before")
    out = tmp_path / "before/out"
    with TableWriter(out / "examples.parquet", read_table(out / "examples.parquet").schema):
        pass
    assert make(inputs, tmp_path / "after", tmp_path / "before")["tokenized"] == 2 * COUNT


def test_an_artifact_that_is_removed_meanwhile_is_as_none(inputs: Path, tmp_path: Path) -> None:
    make(inputs, tmp_path / "before")
    known = files_of(tmp_path / "before/out")

    class Removed(Files):
        def path(self, name: str) -> Path:
            if name == "examples.parquet":
                raise StorageError("it is gone")
            return super().path(name)

    removed = Removed({name: str(path) for name, path in known.files.items()})
    assert make(inputs, tmp_path / "after", removed)["tokenized"] == 2 * COUNT


def test_nothing_is_kept_of_a_context_without_texts(tmp_path: Path) -> None:
    context: StageContext = context_of(tmp_path, tmp_path / "work")
    known = KnownTokens(context.scratch, context.earlier, "template", 0)
    assert known.find([]) == {}
    known.keep({})
    assert list(context.scratch.rglob("piece-*")) == []


def test_materialize_finds_earlier_tokens_through_manifests(inputs: Path, tmp_path: Path) -> None:
    store = ArtifactStore(str(tmp_path / "store"), tmp_path / "cache")
    chosen = Settings(store=store.uri, workdir=tmp_path / "work", device="cpu", threads=1)
    recipe = preset("demo").override({"examples.max_tokens": 500})

    def made(*, force: bool = False) -> Outcome:
        folders = {name: inputs / name for name in BY_NAME["examples"].inputs}
        known = {name: _committed(store, name, folder) for name, folder in folders.items()}
        return materialize(BY_NAME["examples"], recipe, known, store, chosen, Quiet(), force=force)

    assert made().manifest.summary["tokenized"] == 2 * COUNT
    assert made().status == "cached"
    add(inputs, {}, {number: talk_of(number) for number in range(COUNT, COUNT + 3)})
    grown = made()
    assert grown.manifest.summary["tokenized"] == 3
    alone = made(force=True)
    assert alone.manifest.summary["tokenized"] == 2 * COUNT + 3
    assert alone.manifest.digest == grown.manifest.digest
    assert verify(store, committed(store), lambda _: None) == []


def _committed(store: ArtifactStore, name: str, folder: Path) -> Manifest:
    files = {
        path.name: sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }
    payload = {"stage": name, "files": files}
    nothing = Provenance(summary={}, packages={}, commit="", seconds=0.0)
    return commit(store, folder, payload, fingerprint_of(payload), nothing, warn=print)
