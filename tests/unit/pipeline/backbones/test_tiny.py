"""What the tiny backbones learn from: all text about training images, however it names them."""

from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

import pytest

from pipeline.backbones.tiny import _documents, train_tiny_backbones
from pipeline.data.filtered import filtered_conversations
from pipeline.data.schemas import CAPTIONS, CONVERSATIONS, IMAGES
from pipeline.errors import PipelineError
from pipeline.recipe.backbone_parts import TinyBackbones
from pipeline.recipe.presets import preset
from storage.tables import read_table, write_table
from tests.support.training_inputs import context_of

IMAGE = "000000000009.jpg"
NAMES = [
    IMAGE,
    f"coco/train2017/{IMAGE}",
    f"COCO_train2014_{IMAGE}",
    f"coco/val2014/COCO_val2014_{IMAGE}",
    f"folder\\{IMAGE}",
    f"COCO_test2015_{IMAGE}",
    "other.jpg",
]


def write_talk(root: Path, names: Sequence[str], captions: Sequence[str]) -> None:
    """Write one training image with captions, and a conversation under each name."""
    image = {
        "image_id": 9,
        "split": "train",
        "source": "folder",
        "origin": "train2017",
        "file_name": IMAGE,
        "sha256": sha256(b"9").hexdigest(),
        "bytes": 9,
        "width": 64,
        "height": 48,
        "url": "",
    }
    texts = [
        {"caption_id": number, "image_id": 9, "caption": text}
        for number, text in enumerate(captions)
    ]
    talk = [
        {
            "conversation_id": number,
            "record_id": str(number),
            "image_name": name,
            "turns": [
                {"speaker": "human", "text": f"<image>\nQuestion {number}?"},
                {"speaker": "gpt", "text": "Yes."},
            ],
        }
        for number, name in enumerate(names)
    ]
    write_table(root / "images/images.parquet", [image], IMAGES)
    write_table(root / "images/captions.parquet", texts, CAPTIONS)
    write_table(root / "conversations/conversations.parquet", talk, CONVERSATIONS)


def test_the_language_model_reads_the_talk_that_becomes_examples(tmp_path: Path) -> None:
    write_talk(tmp_path / "in", NAMES, ["A cat."])
    read = _documents(context_of(tmp_path / "in", tmp_path / "work"))
    images = read_table(tmp_path / "in/images/images.parquet")
    talk = read_table(tmp_path / "in/conversations/conversations.parquet")
    part = preset("demo").examples.model_copy(update={"forbidden_answers": ()})
    (found,) = filtered_conversations(talk, [talk], images, part)
    kept = [row for row in found.to_pylist() if row["reason"] is None]
    assert len(kept) == 5
    assert read == [["A cat.", *(f"{row['texts'][0]}\n {row['texts'][1]}" for row in kept)]]


def test_talk_about_a_test_image_of_the_same_name_is_not_read(tmp_path: Path) -> None:
    root = tmp_path / "in"
    write_talk(root, [f"train2017/{IMAGE}", f"val2017/{IMAGE}"], ["A cat."])
    (image,) = read_table(root / "images/images.parquet").to_pylist()
    other = {"image_id": 10, "split": "test", "origin": "val2017", "sha256": "0" * 64}
    write_table(root / "images/images.parquet", [image, {**image, **other}], IMAGES)
    (document,) = _documents(context_of(root, tmp_path / "work"))
    assert len(document) == 2


def test_images_without_any_caption_are_refused_before_training(tmp_path: Path) -> None:
    write_talk(tmp_path / "in", [IMAGE], [" "])
    tiny = preset("demo").backbones
    assert isinstance(tiny, TinyBackbones)
    with pytest.raises(PipelineError, match="no training image has a caption"):
        train_tiny_backbones(context_of(tmp_path / "in", tmp_path / "work"), tiny, 0)
