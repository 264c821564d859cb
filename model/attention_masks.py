"""The mask of shared rows in the form that an attention takes.

FlexAttention (Dong et al. 2024, arXiv 2412.05496) takes a rule, which is compiled into its kernel,
and skips blocks of pairs that nobody sees; the others read a mask for each pair of positions.
"""

from typing import TYPE_CHECKING, Union

import torch
from jaxtyping import Bool, Int64
from torch import Tensor
from torch.nn import functional

from model.errors import ModelError
from model.shared_rows import SHARED, segment_mask

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask


def mask_for(
    implementation: str,
    segments: Int64[Tensor, "batch text"],
    prefix: int,
    has_image: Bool[Tensor, "batch"] | None,
    dtype: torch.dtype,
) -> Union[Tensor, "BlockMask"]:
    """What `segment_mask` says, in the form that an attention takes.

    Args:
        implementation: transformers' name of the attention: sdpa, eager or flex_attention.
        segments: See `segment_mask`.
        prefix: See `segment_mask`.
        has_image: See `segment_mask`.
        dtype: Type of the embeddings.

    Returns:
        [batch, 1, position, position]; for flex_attention only its blocks, of which those that
        nobody sees are not computed.

    Raises:
        ModelError: The attention takes no mask per pair of positions.
    """
    if implementation == "flex_attention":
        return block_mask(segments, prefix, has_image)
    visible = segment_mask(segments, prefix, has_image)
    if implementation == "sdpa":
        return visible.unsqueeze(1)  # a boolean is right under autocast too
    if implementation == "eager":
        # Eager attention adds its mask to the scores; a boolean would add 1 to what is visible.
        hidden = torch.finfo(dtype).min
        return torch.zeros_like(visible, dtype=dtype).masked_fill_(~visible, hidden).unsqueeze(1)
    raise ModelError(
        f"attention {implementation!r} takes no mask per pair of positions",
        "load the language model with sdpa, or put one example in each row",
    )


def block_mask(
    segments: Int64[Tensor, "batch text"],
    prefix: int,
    has_image: Bool[Tensor, "batch"] | None = None,
) -> "BlockMask":
    """Return what `segment_mask` says of the same arguments."""
    # Its module brings torch's compiler, a third of a second of imports.
    from torch.nn.attention.flex_attention import create_block_mask

    rows, width = segments.shape
    numbers = functional.pad(segments, (prefix, 0), value=SHARED)  # all examples see the prefix
    if has_image is None:
        has_image = torch.ones(rows, dtype=torch.bool, device=segments.device)
    separator = prefix - 1

    def visible(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        del head
        other = numbers[row, key]
        same = (other == SHARED) | (other == numbers[row, query])
        return (query >= key) & same & (has_image[row] | (key >= separator) | (query < separator))

    size = prefix + width
    return create_block_mask(visible, rows, None, size, size, device=str(segments.device))
