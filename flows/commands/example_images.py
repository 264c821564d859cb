"""Held-out images to try an assistant with, from the data that it was made from."""

import json
from pathlib import Path

from pipeline.publishing.export import Lineage
from storage.sql.queries import Database

_IMAGES = """
SELECT any_value(f.data) AS data, list(DISTINCT q.question ORDER BY q.question) AS questions
FROM questions q JOIN files f USING (sha256)
WHERE q.split <> 'train' -- COCO's test images have no conversations
GROUP BY q.split, q.image_id ORDER BY q.split, q.image_id LIMIT $count
"""


def write_examples(lineage: Lineage, folder: Path, count: int) -> int:
    """Write held-out images, each with a question, and return how many there were.

    The store's later runs are not used: their held-out images may be ones that this assistant was
    trained on.
    """
    images, examples = (lineage.manifests.get(stage) for stage in ("images", "examples"))
    if images is None or examples is None:
        return 0
    sources = {
        "files": lineage.store.artifact(images).paths("files-*.parquet"),
        "questions": lineage.store.artifact(examples).paths("questions.parquet"),
    }
    with Database(sources) as database:
        rows = database.query(_IMAGES, {"count": count}).to_pylist()
    folder.mkdir(parents=True, exist_ok=True)
    listed = []
    for number, row in enumerate(rows):
        name = f"{number}{_suffix(row['data'])}"
        (folder / name).write_bytes(row["data"])
        question = row["questions"][number % len(row["questions"])]  # not of one kind only
        listed.append({"image": name, "question": question})
    (folder / "examples.json").write_text(json.dumps(listed, indent=1))
    return len(rows)


def _suffix(data: bytes) -> str:
    return ".png" if data.startswith(b"\x89PNG") else ".jpg"
