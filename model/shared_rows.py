"""Several examples after one image prefix: positions, block mask and where tokens are predicted.

An example in a shared row is computed as if it were alone: its tokens see the whole prefix and
what comes before them in their own segment, and their positions continue from the prefix. So the
prefix, three quarters of the work of a caption, is computed once for all captions of an image. So
is the text with which all examples of a row begin, such as the question that asks for a caption:
its tokens come first, have the segment `SHARED`, and are seen by all examples.
"""

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

SHARED = -1  # segment of the text that all examples of a row begin with


def positions_in_example(
    segments: Int64[Tensor, "batch text"], attention: Bool[Tensor, "batch text"], prefix: int
) -> Int64[Tensor, "batch position"]:
    """The position of every prefix and text token, counted as if its example were alone.

    Args:
        segments: Number of the example inside its row, for every token.
        attention: True at tokens, False at padding, which gets some position that is in use.
        prefix: Positions before the text, the separator included.
    """
    rows, width = segments.shape
    order = torch.arange(prefix + width, device=segments.device)
    text = order[:width]
    start = torch.where(_first_of_segment(segments), text, 0).cummax(dim=1).values
    index = (text - start + _shared_before(segments)).masked_fill(~attention, 0)
    return torch.cat([order[:prefix].expand(rows, -1), prefix + index], dim=1)


def segment_mask(
    segments: Int64[Tensor, "batch text"],
    prefix: int,
    has_image: Bool[Tensor, "batch"] | None = None,
) -> Bool[Tensor, "batch position position"]:
    """Whether the first position sees the second: the prefix, and earlier tokens of its example.

    Padding needs no mask: it is after the text, where no token looks. Padding itself always sees
    something; a softmax over nothing would be NaN.

    Args:
        segments: Number of the example inside its row, for every token.
        prefix: Positions before the text, the separator included.
        has_image: False for rows whose text does not see the image; None where all do. It still
            sees the separator, which predicts its first token.
    """
    rows, width = segments.shape
    size = prefix + width
    causal = torch.ones(size, size, dtype=torch.bool, device=segments.device).tril()
    visible = causal.repeat(rows, 1, 1)
    of_all = (segments == SHARED).unsqueeze(1)
    visible[:, prefix:, prefix:] &= (segments.unsqueeze(2) == segments.unsqueeze(1)) | of_all
    if has_image is not None:
        image = prefix - 1  # the separator comes after it, and sees none of it either
        visible[:, image:, :image] &= has_image[:, None, None]
    return visible


def predictors(segments: Int64[Tensor, "batch text"]) -> Int64[Tensor, "batch text"]:
    """Where each text token is predicted, in positions after the separator.

    A token is predicted by the one before it in its example; the first by the separator, at 0.
    """
    order = torch.arange(segments.shape[1], device=segments.device)
    return torch.where(_first_of_segment(segments), _shared_before(segments), order)


def per_example(
    counted: Bool[Tensor, "batch text"], segments: Int64[Tensor, "batch text"]
) -> Int64[Tensor, "batch text"]:
    """For every token, how many tokens of its example are counted; valid at those only."""
    # Where nothing is counted the segment may be padding's, which is any number.
    numbers = segments.where(counted, 0)
    return torch.zeros_like(segments).scatter_add(1, numbers, counted.long()).gather(1, numbers)


def _shared_before(segments: Int64[Tensor, "batch text"]) -> Int64[Tensor, "batch text"]:
    """How many shared tokens an example has before the tokens of its own; 0 for shared tokens."""
    shared = segments == SHARED
    return shared.sum(dim=1, keepdim=True).where(~shared, 0)


def _first_of_segment(segments: Int64[Tensor, "batch text"]) -> Bool[Tensor, "batch text"]:
    starts = torch.ones_like(segments[:, :1], dtype=torch.bool)
    return torch.cat([starts, segments.diff(dim=1) != 0], dim=1)
