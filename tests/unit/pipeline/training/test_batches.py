"""The feed: rows by image, every example once, the same order whoever asks and whenever."""

from collections import Counter
from collections.abc import Sequence
from hashlib import sha256
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.prompt import IMAGE
from model.training import MicroBatch
from pipeline.data.schemas import EXAMPLES
from pipeline.errors import PipelineError
from pipeline.training.batches import TrainingBatches
from pipeline.training.collate import collate
from pipeline.training.example_sets import ExampleSet
from storage.features.patches import PatchTable
from storage.features.shards import ShardRows, shard_paths, write_shard
from storage.tables import write_table

IMAGES, PATCHES, VISION = 23, 3, 4
CAPTIONS = {"caption": 1.0}
BOTH = {"conversation": 1.0, "caption": 0.5}


class Folder:
    """An artifact as a stage sees it, without a store."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def names(self) -> list[str]:
        return sorted(path.name for path in self.root.iterdir())

    def path(self, name: str) -> Path:
        return self.root / name

    def paths(self, pattern: str) -> list[Path]:
        return sorted(self.root.glob(pattern))

    def directory(self, prefix: str) -> Path:
        return self.root / prefix


def key(image: int) -> str:
    return sha256(str(image).encode()).hexdigest()


def example_rows() -> list[dict[str, Any]]:
    """Images with 1 to 7 captions and 0 to 2 conversations, every fifth for validation.

    The first token of an example is its id, which is how the tests recognise it.
    """
    rng, rows = np.random.default_rng(0), []
    for image in range(IMAGES):
        kinds = ["caption"] * (1 + image % 7) + ["conversation"] * (image % 3)
        for kind in kinds:
            number = len(rows)
            length = int(rng.integers(4, 9) if kind == "caption" else rng.integers(10, 30))
            asked = 0 if kind == "caption" else length // 2
            rows.append(
                {
                    "example_id": number,
                    "kind": kind,
                    "split": "validation" if image % 5 == 4 else "train",
                    "image_id": image,
                    "sha256": key(image),
                    "more_sha256": [],
                    "source_id": number,
                    "turns": 1,
                    "text": "",
                    "input_ids": [number, *range(1000, 999 + length)],
                    "supervised": [False] * asked + [True] * (length - asked),
                }
            )
    return [rows[place] for place in rng.permutation(len(rows))]


ROWS = {row["example_id"]: row for row in example_rows()}


@pytest.fixture(scope="module")
def patches(tmp_path_factory: pytest.TempPathFactory) -> PatchTable:
    """Two shards; all values of an image's patches are its number."""
    folder = tmp_path_factory.mktemp("features")
    for shard, images in enumerate(np.array_split(np.arange(IMAGES)[::-1], 2)):
        count = len(images)
        values = np.broadcast_to(images[:, None, None], (count, PATCHES, VISION))
        rows = ShardRows(
            sha256=[key(image) for image in images],
            image_id=images.astype(np.int64),
            width=np.full(count, 8, np.int32),
            height=np.full(count, 8, np.int32),
            split=["train"] * count,
            pooled=np.ones((count, 2), np.float32),
            patches=values.astype(np.float16),
        )
        write_shard(folder, shard, rows, "encoder")
    return PatchTable([shard_paths(folder, shard) for shard in range(2)])


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    folder = tmp_path_factory.mktemp("examples")
    write_table(folder / "examples.parquet", example_rows(), EXAMPLES)
    return Folder(folder)


@pytest.fixture(scope="module")
def shared(artifact: Folder, patches: PatchTable) -> ExampleSet:
    return ExampleSet(artifact, patches, "train", CAPTIONS, 0, examples_per_row=5)


def examples_in(micro: MicroBatch) -> list[list[int]]:
    """The ids of the examples of each row, read from their first tokens."""
    batch = micro.batch
    segments = torch.zeros_like(batch.input_ids) if batch.segments is None else batch.segments
    found = []
    for ids, numbers, real in zip(batch.input_ids, segments, batch.attention, strict=True):
        starts = [0, *(1 + np.flatnonzero(np.diff(numbers[real].numpy())))]
        found.append([int(ids[start]) for start in starts])
    return found


def feed(
    examples: ExampleSet, batch: int = 4, micro_batch: int = 4, **others: int
) -> TrainingBatches:
    others = {"seed": 0, **others}
    return TrainingBatches(examples, batch=batch, micro_batch=micro_batch, **others)


def ids_of(step: Sequence[MicroBatch]) -> list[list[int]]:
    return [micro.example_ids for micro in step]


# Rows


@pytest.mark.parametrize("shares", [CAPTIONS, BOTH], ids=["captions", "both kinds"])
@pytest.mark.parametrize("per_row", [1, 2, 5, 99])
def test_a_row_is_one_image_with_its_own_examples(
    artifact: Folder, patches: PatchTable, per_row: int, shares: dict[str, float]
) -> None:
    examples = ExampleSet(artifact, patches, "train", shares, 0, per_row)
    everything = examples.micro_batch(np.arange(len(examples.rows)), 1)
    for row, found in enumerate(examples_in(everything)):
        assert found == sorted(found)
        assert len(found) <= per_row
        assert {ROWS[example]["split"] for example in found} == {"train"}
        (image,) = {ROWS[example]["image_id"] for example in found}
        assert everything.batch.patches[row].unique().tolist() == [image]
        real = everything.batch.attention[row]
        said = [ROWS[example]["input_ids"] for example in found]
        asked = [ROWS[example]["supervised"] for example in found]
        assert everything.batch.input_ids[row][real].tolist() == [*chain(*said)]
        assert everything.batch.supervised[row][real].tolist() == [*chain(*asked)]
        assert examples.lengths[row] == sum(map(len, said))
        assert examples.targets[row] == sum(map(sum, asked))


def test_images_take_as_few_rows_as_they_can_and_fill_them_alike(shared: ExampleSet) -> None:
    everything = examples_in(shared.micro_batch(np.arange(len(shared.rows)), 1))
    sizes: dict[object, list[int]] = {}
    for row in everything:
        sizes.setdefault(ROWS[row[0]]["image_id"], []).append(len(row))
    assert {tuple(size) for size in sizes.values()} == {
        (1,),
        (2,),
        (3,),
        (4,),
        (5,),
        (3, 3),
        (4, 3),
    }


def test_the_length_of_an_example_set_is_its_number_of_examples(
    artifact: Folder, patches: PatchTable, shared: ExampleSet
) -> None:
    alone = ExampleSet(artifact, patches, "train", CAPTIONS, 0)
    wanted = [r for r in ROWS.values() if r["kind"] == "caption" and r["split"] == "train"]
    assert len(shared) == len(alone) == len(alone.rows) == len(wanted)
    assert len(shared.rows) < len(alone.rows)


def test_a_question_before_all_captions_of_an_image_stands_in_the_row_once(
    tmp_path: Path, patches: PatchTable
) -> None:
    question = [90, 91, 92]
    rows = [
        {
            **row,
            "input_ids": [*question, *row["input_ids"]],
            "supervised": [False] * 3 + row["supervised"],
        }
        for row in example_rows()
    ]
    write_table(tmp_path / "examples.parquet", rows, EXAMPLES)
    alone = ExampleSet(Folder(tmp_path), patches, "train", CAPTIONS, 0)
    asked = ExampleSet(Folder(tmp_path), patches, "train", CAPTIONS, 0, examples_per_row=5)
    several = sum(len(row) - 1 for row in asked.rows)
    assert several
    assert asked.lengths.sum() == alone.lengths.sum() - 3 * several
    batch = asked.micro_batch(np.arange(len(asked.rows)), 1).batch
    assert batch.attention.sum(dim=1).tolist() == asked.lengths.tolist()
    assert batch.supervised.sum(dim=1).tolist() == asked.targets.tolist()


def test_one_example_per_row_needs_no_segments(artifact: Folder, patches: PatchTable) -> None:
    alone = ExampleSet(artifact, patches, "train", CAPTIONS, 0)
    assert alone.micro_batch(np.arange(4), 1).batch.segments is None


def test_rows_do_not_depend_on_the_order_of_the_table(
    artifact: Folder, patches: PatchTable, shared: ExampleSet, tmp_path: Path
) -> None:
    rows = sorted(example_rows(), key=lambda row: row["example_id"])
    write_table(tmp_path / "examples.parquet", rows, EXAMPLES)
    again = ExampleSet(Folder(tmp_path), patches, "train", CAPTIONS, 0, examples_per_row=5)
    steps = [ids_of(feed(examples).step(1)) for examples in (shared, again)]
    assert steps[0] == steps[1]


def test_a_split_without_examples_has_no_rows(artifact: Folder, patches: PatchTable) -> None:
    nothing = ExampleSet(artifact, patches, "test", CAPTIONS, 0, examples_per_row=5)
    assert len(nothing) == len(nothing.rows) == len(list(nothing.in_order(4))) == 0


def test_validation_reads_every_example_once_and_shortest_rows_first(
    artifact: Folder, patches: PatchTable
) -> None:
    examples = ExampleSet(artifact, patches, "validation", CAPTIONS, 0, examples_per_row=5)
    passes = list(examples.in_order(2))
    found = Counter(chain(*ids_of(passes)))
    assert found == Counter(examples.example_ids.tolist())
    widths = [micro.batch.input_ids.shape[1] for micro in passes]
    assert widths == sorted(widths)
    assert all(micro.tokens == micro.batch.supervised.sum() for micro in passes)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.integers(1, 6), min_size=1, max_size=4), min_size=1, max_size=4))
def test_collate_loses_and_adds_nothing(lengths: list[list[int]]) -> None:
    rng = np.random.default_rng(0)
    ids = [rng.integers(1, 50, size=n).astype(np.int32) for row in lengths for n in row]
    targets = [np.arange(len(each)) >= len(each) // 2 for each in ids]
    patches = torch.zeros(len(lengths), PATCHES, VISION)
    batch = collate(patches, ids, targets, [len(row) for row in lengths])
    widths = [sum(row) for row in lengths]
    assert batch.attention.sum(dim=1).tolist() == widths
    assert batch.input_ids.shape[1] == max(widths)
    assert batch.input_ids[batch.attention].tolist() == np.concatenate(ids).tolist()
    assert batch.supervised[batch.attention].tolist() == np.concatenate(targets).tolist()
    numbers = [number for row in lengths for number, n in enumerate(row) for _ in range(n)]
    if batch.segments is None:
        assert max(numbers) == 0
    else:
        assert batch.segments[batch.attention].tolist() == numbers
        assert not batch.segments[~batch.attention].any()


# Order


def test_every_example_comes_once_per_epoch_but_for_the_dropped_rest(shared: ExampleSet) -> None:
    stream = feed(shared, batch=5, micro_batch=5)
    left_out = len(shared.rows) - 5 * stream.steps_per_epoch
    assert 0 < left_out < 5
    epochs = []
    for epoch in range(2):
        steps = range(epoch * stream.steps_per_epoch, (epoch + 1) * stream.steps_per_epoch)
        rows = [tuple(row) for s in steps for micro in stream.step(s) for row in examples_in(micro)]
        assert len(set(rows)) == len(rows) == len(shared.rows) - left_out
        assert max(Counter(chain(*rows)).values()) == 1
        epochs.append(rows)
    assert epochs[0] != epochs[1]


def test_example_ids_name_what_is_in_the_batch(shared: ExampleSet) -> None:
    for micro in feed(shared, micro_batch=2).step(0):
        assert micro.example_ids == [*chain(*examples_in(micro))]


def test_the_order_is_a_function_of_seed_and_step(shared: ExampleSet) -> None:
    ahead, back = feed(shared), feed(shared)
    forwards = [ids_of(ahead.step(number)) for number in range(12)]
    backwards = [ids_of(back.step(number)) for number in reversed(range(12))]
    assert forwards == backwards[::-1]
    assert forwards != [ids_of(feed(shared, seed=1).step(number)) for number in range(12)]


def test_resuming_at_a_step_gives_the_same_batches(shared: ExampleSet) -> None:
    first = feed(shared, micro_batch=2)
    for number in range(7):
        first.step(number)
    for number in range(7, 10):
        resumed = feed(shared, micro_batch=2)
        for old, new in zip(first.step(number), resumed.step(number), strict=True):
            assert (old.example_ids, old.tokens) == (new.example_ids, new.tokens)
            torch.testing.assert_close(vars(old.batch), vars(new.batch), rtol=0, atol=0)


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_processes_share_a_step_without_overlap(shared: ExampleSet, processes: int) -> None:
    whole = feed(shared, batch=8, micro_batch=8).step(1)
    ranks = [
        feed(shared, batch=8, micro_batch=1, rank=rank, processes=processes)
        for rank in range(processes)
    ]
    assert {stream.passes for stream in ranks} == {8 // processes}
    parts = [micro for stream in ranks for micro in stream.step(1)]
    assert Counter(chain(*ids_of(parts))) == Counter(chain(*ids_of(whole)))
    assert {micro.tokens for micro in parts} == {micro.tokens for micro in whole}


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_tokens_are_those_of_the_whole_optimizer_step(shared: ExampleSet, processes: int) -> None:
    parts = [
        micro
        for rank in range(processes)
        for micro in feed(shared, 8, 2, rank=rank, processes=processes).step(0)
    ]
    total = sum(int(micro.batch.supervised.sum()) for micro in parts)
    assert {micro.tokens for micro in parts} == {total}
    assert max(len(micro.batch.patches) for micro in parts) <= 2


def test_rows_of_similar_length_come_together(artifact: Folder, patches: PatchTable) -> None:
    examples = ExampleSet(artifact, patches, "train", BOTH, 0, examples_per_row=3)
    stream = feed(examples)
    spread = [np.ptp(m.batch.attention.sum(dim=1).numpy()) for m in _epoch(stream)]
    shuffled = np.random.default_rng(0).permutation(len(examples.rows))[: 4 * len(spread)]
    unsorted = np.ptp(examples.lengths[shuffled].reshape(-1, 4), axis=1)
    assert np.mean(spread) < 0.5 * np.mean(unsorted)


def test_batches_are_not_met_in_order_of_length(artifact: Folder, patches: PatchTable) -> None:
    examples = ExampleSet(artifact, patches, "train", BOTH, 0, examples_per_row=3)
    widths = [micro.batch.input_ids.shape[1] for micro in _epoch(feed(examples, 2, 2))]
    assert widths not in (sorted(widths), sorted(widths, reverse=True))


def test_fewer_rows_than_a_batch_are_repeated(shared: ExampleSet) -> None:
    stream = feed(shared, batch=64, micro_batch=64)
    assert stream.steps_per_epoch == 1
    (micro,) = stream.step(0)
    assert len(micro.batch.patches) == 64
    assert set(micro.example_ids) == set(shared.example_ids.tolist())


@pytest.mark.parametrize(("batch", "micro_batch"), [(1, 1), (3, 1)])
def test_a_batch_that_leaves_a_process_without_rows_is_refused(
    shared: ExampleSet, batch: int, micro_batch: int
) -> None:
    with pytest.raises(PipelineError, match="multiple of 2"):
        feed(shared, batch, micro_batch, processes=2)


def _epoch(stream: TrainingBatches) -> list[MicroBatch]:
    return [micro for step in range(stream.steps_per_epoch) for micro in stream.step(step)]


# Texts without an image


@pytest.fixture(scope="module")
def with_texts(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """The same examples and five conversations about no image."""
    rows = example_rows()
    for number in range(len(rows), len(rows) + 5):
        told = {"kind": "conversation", "split": "train", "image_id": None, "sha256": None}
        ids = {"input_ids": [number, 1000, 1001], "supervised": [False, True, True]}
        rows.append({**rows[0], "example_id": number, "source_id": number, **told, **ids})
    folder = tmp_path_factory.mktemp("texts")
    write_table(folder / "examples.parquet", rows, EXAMPLES)
    return Folder(folder)


def test_a_text_alone_is_a_row_of_its_own_without_an_image(
    with_texts: Folder, artifact: Folder, patches: PatchTable
) -> None:
    both = ExampleSet(with_texts, patches, "train", {"conversation": 1.0}, 0, 4)
    images = ExampleSet(with_texts, patches, "train", {"conversation": 1.0}, 0, 4, text_only=False)
    before = ExampleSet(artifact, patches, "train", {"conversation": 1.0}, 0, 4)
    assert len(both) == len(images) + 5
    assert images.example_ids.tolist() == before.example_ids.tolist()
    assert [row.tolist() for row in images.rows] == [row.tolist() for row in before.rows]
    texts = set(range(len(ROWS), len(ROWS) + 5))
    alone = [row for row in both.rows if int(both.example_ids[row[0]]) in texts]
    assert [len(row) for row in alone] == [1] * 5
    found = both.micro_batch(np.arange(len(both.rows)), 1)
    assert found.batch.has_image is not None
    firsts = found.batch.input_ids[:, 0].tolist()
    lost = [first for first, has in zip(firsts, found.batch.has_image, strict=True) if not has]
    assert set(lost) == texts
    assert images.micro_batch(np.arange(3), 1).batch.has_image is None
    assert len(both.some_patches(100)) == len(images.some_patches(100))


# Several images


def test_an_example_about_several_images_has_a_row_of_its_own(
    tmp_path: Path, artifact: Folder, patches: PatchTable
) -> None:
    rows = example_rows()
    more = {}
    for row in rows:
        if row["kind"] == "conversation" and row["image_id"] % 2:
            further = [(row["image_id"] + step) % IMAGES for step in (3, 1)]
            row["more_sha256"] = [key(image) for image in further]
            row["input_ids"] = [row["input_ids"][0], IMAGE, *row["input_ids"][1:-1], IMAGE]
            row["supervised"] = [False, False, True] + [True] * (len(row["input_ids"]) - 4)
            row["supervised"].append(False)
            more[row["example_id"]] = further
    write_table(tmp_path / "examples.parquet", rows, EXAMPLES)
    told = {"prefix": 3, "examples_per_row": 4}
    found = ExampleSet(Folder(tmp_path), patches, "train", {"conversation": 1.0}, 0, **told)
    before = ExampleSet(artifact, patches, "train", {"conversation": 1.0}, 0, examples_per_row=4)
    assert set(found.example_ids) == set(before.example_ids)
    lonely = [row for row in found.rows if int(found.example_ids[row[0]]) in more]
    assert [len(row) for row in lonely] == [1] * len(more.keys() & set(found.example_ids))
    micro = found.micro_batch(np.arange(len(found.rows)), 1)
    assert micro.batch.slots is not None
    count = len(found.rows)
    shown = iter(micro.batch.patches[count:, 0, 0].tolist())
    for row, chosen in enumerate(found.rows):
        further = more.get(int(found.example_ids[chosen[0]]), [])
        assert [next(shown) for _ in further] == further
        assert int(micro.batch.slots[row].sum()) == 3 * len(further)
    assert next(shown, None) is None
    assert (micro.batch.input_ids[micro.batch.slots] == 0).all()
    assert found.lengths.sum() == micro.text_tokens
    assert not set(found.one_row_per_image()) & {
        at for at, row in enumerate(found.rows) if int(found.example_ids[row[0]]) in more
    }
