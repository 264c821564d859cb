"""How well each caption fits its image, so that captions of other images can be left out.

The score is the cosine of the pooled image embedding and the text embedding, -1 to 1, which is what
DataComp's filters compare (Gadre et al. 2023, arXiv 2304.14108); CLIPScore (Hessel et al. 2021,
arXiv 2104.08718) is 2.5 times it. It is rounded so that devices agree.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from model.text_encoder import TextEncoder
from storage.features.pooled import read_indexes

BATCH = 256  # captions per forward pass
_DIGITS = 4
CLIP_SCORES = pa.schema([("caption_id", pa.int64()), ("clip_score", pa.float32())])


def clip_scores(
    captions: pa.Table,
    hashes: Sequence[str],
    paths: Sequence[Path],
    encoder: TextEncoder,
    tick: Callable[[int], None],
) -> pa.Table:
    """Return the score of every caption, in the order of the captions.

    `hashes` are the sha256 of each caption's image, `paths` the index files of all shards.
    """
    index = read_indexes(paths)
    known = index["sha256"].to_pylist()
    places = {sha256: place for place, sha256 in enumerate(known)}
    flat = index["pooled"].combine_chunks().flatten().to_numpy()
    pooled = torch.from_numpy(flat.reshape(len(known), -1).copy())
    texts = captions["caption"].to_pylist()
    scores = np.empty(len(texts), np.float32)
    for start in range(0, len(texts), BATCH):
        chosen = slice(start, start + BATCH)
        images = pooled[[places[sha256] for sha256 in hashes[chosen]]]
        images = torch.nn.functional.normalize(images, dim=1)
        similarity = (encoder.encode(texts[chosen]).cpu() * images).sum(dim=1)
        scores[chosen] = similarity.numpy().round(_DIGITS)
        tick(len(similarity))
    return pa.table({"caption_id": captions["caption_id"], "clip_score": scores}, CLIP_SCORES)
