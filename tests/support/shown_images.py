"""Random patch embeddings of a few images, and a likelihood computed by hand beside ours."""

from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.vlm import VisionLanguageModel
from storage.features.patches import PatchTable
from storage.features.shards import ShardRows, shard_paths, write_shard


def key_of(number: int) -> str:
    """Return the hash of an image."""
    return sha256(str(number).encode()).hexdigest()


def write_images(
    folder: Path,
    patches: NDArray[np.float16],
    pooled: NDArray[np.float32] | None = None,
    splits: Sequence[str] | None = None,
) -> PatchTable:
    """Write images as one shard and return their patches; image n has the hash `key_of(n)`."""
    folder.mkdir(parents=True, exist_ok=True)
    count = len(patches)
    rows = ShardRows(
        sha256=[key_of(number) for number in range(count)],
        image_id=np.arange(count),
        width=np.full(count, 8, np.int32),
        height=np.full(count, 8, np.int32),
        split=list(splits or ["test"] * count),
        pooled=np.ones((count, 2), np.float32) if pooled is None else pooled,
        patches=patches,
    )
    write_shard(folder, 0, rows, "encoder")
    return PatchTable([shard_paths(folder, 0)])


def scores_by_hand(vlm: VisionLanguageModel, patches: Tensor, ids: Sequence[int]) -> Tensor:
    """Return the log-likelihoods [token, word] of every token of one text about one image.

    Args:
        vlm: The model.
        patches: The image [patch, vision].
        ids: The text.
    """
    with torch.no_grad():
        prefix = vlm.embed_images(patches[None]).tokens
        joint = torch.cat([prefix, vlm.embed_text(torch.tensor([list(ids)]))], dim=1)
        scores = vlm.logits(vlm.hidden(joint))[0].double().log_softmax(-1)
    return scores[prefix.shape[1] - 1 : -1]


def nats_by_hand(vlm: VisionLanguageModel, patches: Tensor, ids: Sequence[int]) -> Tensor:
    """Return the nats [token] of a text about an image."""
    return -scores_by_hand(vlm, patches, ids)[torch.arange(len(ids)), torch.tensor(list(ids))]
