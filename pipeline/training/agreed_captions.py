"""Which captions are learned: those on which the annotators of similar images agree.

Five people describe an image in five ways, and a model that learns all of them is as various as
they are. Here an image's own captions that agree most with the others are learned, and captions of
its neighbours that would describe it, too. No test or validation image is looked at.
"""

import numpy as np
import pyarrow as pa
import torch

from model.caption_consensus import CaptionConsensus
from pipeline.engine.stage import StageContext
from pipeline.recipe.parts import FinetunePart
from storage.tables import read_table


def agreed_captions(context: StageContext, part: FinetunePart, table: pa.Table) -> pa.Table:
    """Return training examples with the captions that agree, each with the image it is learned for.

    A caption of another image keeps its `example_id`, so that it can be traced.

    Args:
        context: Its inputs hold the artifact `features`.
        part: How many captions are taken.
        table: The training split of the `examples` table.
    """
    kinds = np.array(table["kind"].to_pylist())
    rows = np.flatnonzero(kinds == "caption")
    by_image: dict[str, list[int]] = {}
    for row, sha256 in zip(rows.tolist(), table["sha256"].take(rows).to_pylist(), strict=True):
        by_image.setdefault(sha256, []).append(row)
    if len(by_image) < 2:
        return table  # nobody to agree with
    hashes = sorted(by_image)
    texts = table["text"]
    captions = [[texts[row].as_py() for row in by_image[sha256]] for sha256 in hashes]
    consensus = CaptionConsensus(_pooled(context, hashes), captions)
    taken: list[int] = []
    learned_for: list[int] = []
    with context.report.track("choose captions", len(hashes)) as tick:
        for image in range(len(hashes)):
            for other, caption in consensus.targets(image, part.own_captions, part.other_captions):
                taken.append(by_image[hashes[other]][caption])
                learned_for.append(by_image[hashes[image]][0])
            tick()
    chosen = table.take(taken)
    for name in ("sha256", "image_id"):
        place = chosen.schema.get_field_index(name)
        chosen = chosen.set_column(place, chosen.schema.field(name), table[name].take(learned_for))
    return pa.concat_tables([chosen, table.take(np.flatnonzero(kinds != "caption"))])


def _pooled(context: StageContext, hashes: list[str]) -> torch.Tensor:
    """Return the first encoder's pooled embeddings of images, float16 [image, vision]."""
    found: dict[str, np.ndarray] = {}
    wanted = set(hashes)
    for path in context.inputs["features"].paths("index-*.parquet"):
        index = read_table(path, ["sha256", "pooled"])
        for sha256, pooled in zip(index["sha256"].to_pylist(), index["pooled"], strict=True):
            if sha256 in wanted:
                found[sha256] = np.array(pooled.values, np.float32)
    rows = torch.from_numpy(np.stack([found[sha256] for sha256 in hashes]))
    return torch.nn.functional.normalize(rows, dim=-1).half()
