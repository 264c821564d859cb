"""Where a model looked: by how much a text becomes less likely when one patch is hidden.

Source: Zeiler & Fergus 2014, *Visualizing and Understanding Convolutional Networks*
(arXiv 1311.2901): hide one region of the image after another and measure how the output falls.
Here the region is a patch of the encoder's output, so no image is encoded again, and the output is
the log-probability of each token that was written.

A hidden patch is replaced by the mean patch of the training images, which every trained model
keeps (`VisionPrefix.patch_mean`): it has no information about this image, and once patches are
centred it is zero, the centre of the projector's inputs. The mean of the image's own patches still
has information about the image, so it is used only for older models that were never centred.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Float32
from torch import Tensor

from model.batch import Batch
from model.errors import ModelError
from model.generation import evaluating
from model.patch_grid import grid_side
from model.vlm import VisionLanguageModel

Text = tuple[Sequence[int], Sequence[int]]  # token ids of the prompt, and of the answer


def neutral_patch(
    vlm: VisionLanguageModel, patches: Float[Tensor, "patch vision"]
) -> Float32[Tensor, "vision"]:
    """Return what a hidden patch is replaced by.

    That is the training images' mean patch, or where the model was never centred on one, the mean
    of the image's own patches.
    """
    known = vlm.vision_prefix.patch_mean
    return known.cpu().float() if known.any() else patches.cpu().float().mean(dim=0)


def importance_map(
    vlm: VisionLanguageModel,
    patches: Float[Tensor, "patch vision"],
    prompt: Sequence[int],
    answer: Sequence[int],
    batch: int = 64,
) -> Float32[Tensor, "token patch"]:
    """Return how much each patch mattered for each token of an answer, in nats.

    Args:
        vlm: The model; see `importance_maps`.
        patches: The image's patch embeddings, float16 or float32, a square grid row by row.
        prompt: Token ids between the image and the answer; empty for a caption.
        answer: Token ids of the answer, in the order in which they were written.
        batch: Variants of the image in a forward pass, at most.

    Raises:
        ModelError: See `importance_maps`.
    """
    return importance_maps(vlm, patches, [(prompt, answer)], batch)[0]


def importance_maps(
    vlm: VisionLanguageModel,
    patches: Float[Tensor, "patch vision"],
    texts: Sequence[Text],
    batch: int = 64,
) -> list[Float32[Tensor, "token patch"]]:
    """Return how much each patch mattered for each token of several texts about one image, in nats.

    The value is by how much the token's log-probability, given the true tokens before it, falls
    when the patch is hidden. Where it is negative, the patch made it less likely. Several texts
    share the image's prefix in a row (`model.shared_rows`), as in training; one text alone needs
    no such mask.

    Args:
        vlm: The model; it runs in evaluation mode and is left in the mode it was in.
        patches: The image's patch embeddings, float16 or float32, a square grid row by row.
        texts: Token ids of each prompt and of its answer; an empty prompt is a caption's.
        batch: Variants of the image in a forward pass, at most; there is one for each patch, and
            the image as it is.

    Returns:
        One map for each text, float32 on the CPU, [tokens of the answer, patch].

    Raises:
        ModelError: The patches form no square, an answer is empty, or a text is too long.
    """
    grid_side(len(patches))
    if not texts or not all(len(answer) for _, answer in texts):
        raise ModelError("an answer is empty: there is no token to explain")
    device = vlm.vision_prefix.separator.device
    shown = patches.cpu().float()
    neutral = neutral_patch(vlm, shown)
    nats = []
    with evaluating(vlm), torch.no_grad():
        for hidden in torch.arange(-1, len(patches)).split(max(1, batch)):
            variants = shown.repeat(len(hidden), 1, 1)
            for row, patch in enumerate(hidden.tolist()):
                if patch >= 0:
                    variants[row, patch] = neutral
            losses = vlm(_rows(variants, texts).to(device))
            nats.append(losses.float().cpu().view(len(hidden), -1))
    whole, *others = torch.cat(nats)
    rises = torch.stack(others, dim=1) - whole.unsqueeze(1)
    return list(rises.split([len(answer) for _, answer in texts]))


def _rows(variants: Float[Tensor, "row patch vision"], texts: Sequence[Text]) -> Batch:
    """Return a row of all texts for each variant of the image."""
    ids, targets, segments = [], [], []
    for number, (prompt, answer) in enumerate(texts):
        ids += [*prompt, *answer]
        targets += [False] * len(prompt) + [True] * len(answer)
        segments += [number] * (len(prompt) + len(answer))
    rows = len(variants)
    return Batch(
        variants,
        torch.tensor(ids).repeat(rows, 1),
        torch.ones(rows, len(ids), dtype=torch.bool),
        torch.tensor(targets).repeat(rows, 1),
        torch.tensor(segments).repeat(rows, 1) if len(texts) > 1 else None,
    )
