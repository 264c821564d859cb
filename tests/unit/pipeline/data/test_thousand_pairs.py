"""A thousand pairs give equal examples and equal features, whatever form they are kept in."""

import hashlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.data.examples import examples
from pipeline.data.schemas import CONVERSATIONS, DROPS
from pipeline.recipe.parts import FeaturesPart
from pipeline.recipe.presets import preset
from storage.features.patches import PatchTable
from storage.tables import read_table, write_table
from tests.support.training_inputs import context_of
from tests.unit.pipeline.data import test_captioned_sources as forms
from tests.unit.pipeline.data.test_images import jpeg
from tests.unit.pipeline.features.test_features import Folder, embed, made_backbones

COUNT = 1000
PART = FeaturesPart(
    layer=-1,
    second_layer=-1,
    patches=4,
    batch=50,
    precision="fp32",
    rows_per_shard=400,
    clip_scores=False,
)


def as_hub_dataset(folder: Path) -> Any:
    """A Parquet file that holds the images, as datasets of the Hugging Face Hub do."""
    folder.mkdir()
    held = [{"bytes": forms.BYTES[name], "path": name} for name in forms.PAIRS]
    texts = [list(texts) for texts in forms.PAIRS.values()]
    pq.write_table(pa.table({"image": held, "caption": texts}), folder / "train.parquet")
    return forms.table_source(str(folder / "train.parquet"))


WRITERS: list[Callable[[Path], Any]] = [
    forms.as_csv,
    forms.as_json_lines,
    forms.as_parquet,
    forms.as_text_files,
    forms.as_shards,
    forms.as_coco,
    as_hub_dataset,
]
Learned = tuple[set[tuple[str, str, tuple[int, ...]]], dict[str, str]]


@pytest.fixture(scope="module")
def thousand() -> Iterator[None]:
    """Let every writer write a thousand pairs."""
    patch = pytest.MonkeyPatch()
    pairs = {f"{n:04d}.jpg": (f"image {n}, seen", f'a "{n}" again') for n in range(COUNT)}
    data = {name: jpeg(n) + n.to_bytes(2, "big") for n, name in enumerate(pairs)}
    patch.setattr(forms, "PAIRS", pairs)
    patch.setattr(forms, "BYTES", data)
    yield
    patch.undo()


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    return made_backbones(tmp_path_factory.mktemp("backbones"), seed=0)


def learned_from(source: Any, work: Path, lm: Path, clip: Folder) -> Learned:
    """Return every example as hash, text and tokens, and a digest of every image's features."""
    summary, out = forms.run(source, work / "images", limit=COUNT, test_limit=COUNT)
    assert summary["images"] == COUNT
    inputs = work / "inputs"
    shutil.copytree(lm, inputs / "backbones/lm")
    shutil.copytree(out, inputs / "images")
    write_table(inputs / "conversations/conversations.parquet", [], CONVERSATIONS)
    write_table(inputs / "conversations/drops.parquet", [], DROPS)
    context = context_of(inputs, work / "examples")
    examples(context, preset("demo").examples, 0)
    rows = read_table(context.out / "examples.parquet").to_pylist()
    texts = {(row["sha256"], row["text"], tuple(row["input_ids"])) for row in rows}
    made, _ = embed(work / "features", Folder(out), clip, part=PART)
    files = list(zip(made.paths("index-*"), made.paths("patches-*"), strict=True))
    index = pa.concat_tables([read_table(path) for path, _ in files])
    patches = PatchTable(files)
    return texts, {
        row["sha256"]: hashlib.sha256(
            patches.gather(patches.rows_of([row["sha256"]])).tobytes()
            + repr(row["pooled"]).encode()
        ).hexdigest()
        for row in index.to_pylist()
    }


@pytest.fixture(scope="module")
def expected(
    thousand: None, clip: Folder, tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory
) -> Learned:
    del thousand
    work = tmp_path_factory.mktemp("expected")
    found = learned_from(forms.as_csv(work / "data"), work, tiny_bundle / "lm", clip)
    assert (len(found[0]), len(found[1])) == (2 * COUNT, COUNT)
    return found


@pytest.mark.parametrize("writer", WRITERS[1:], ids=lambda writer: writer.__name__)
def test_every_form_gives_the_same_examples_and_features(
    expected: Learned,
    writer: Callable[[Path], Any],
    tmp_path: Path,
    tiny_bundle: Path,
    clip: Folder,
) -> None:
    found = learned_from(writer(tmp_path / "data"), tmp_path, tiny_bundle / "lm", clip)
    assert found == expected
