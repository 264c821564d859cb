"""The input of a training step: images, text and masks, checked where they are put together."""

import copy
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from model.errors import ModelError
from model.shared_rows import SHARED


@dataclass(frozen=True)
class Batch:
    """Rows of one step: an image and one or more examples about it; padded on the right.

    Attributes:
        patches: Patch embeddings in any float type: the first image of each row, then the further
            images, row by row, in the order of their places.
        input_ids: Token ids; at padded positions any valid id.
        attention: True at tokens, False at padding.
        supervised: True where the token is a target of the loss.
        segments: Number of the token's example inside its row: 0, 0, 1, 1, 2, …. Tokens with which
            all examples of a row begin come first and have -1; at padded positions any number.
            None where each row is one example, which costs less.
        has_image: False for rows of text alone, whose patches are seen by no token; None where
            every row has an image.
        slots: True at the places of further images: as many for each as an image has prefix
            tokens, the separator included. None where every row has one image at most.
        target_rows: Row of each supervised token, row by row.
        target_columns: Its place in that row. Both are looked up once, where the batch is made:
            a mask as an index makes the CPU wait for a GPU.
        slot_rows: Row of each place of a further image, row by row.
        slot_columns: Its place in that row.

    Raises:
        ModelError: Masks or segments contradict each other, or nothing is supervised.
    """

    patches: Float[Tensor, "image patch vision"]
    input_ids: Int64[Tensor, "batch text"]
    attention: Bool[Tensor, "batch text"]
    supervised: Bool[Tensor, "batch text"]
    segments: Int64[Tensor, "batch text"] | None = None
    has_image: Bool[Tensor, "batch"] | None = None
    slots: Bool[Tensor, "batch text"] | None = None
    target_rows: Int64[Tensor, "target"] = field(init=False)
    target_columns: Int64[Tensor, "target"] = field(init=False)
    slot_rows: Int64[Tensor, "slot"] | None = field(init=False, default=None)
    slot_columns: Int64[Tensor, "slot"] | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        rows, columns = self.supervised.nonzero(as_tuple=True)
        object.__setattr__(self, "target_rows", rows)
        object.__setattr__(self, "target_columns", columns)
        if self.slots is not None:
            places = self.slots.nonzero(as_tuple=True)
            object.__setattr__(self, "slot_rows", places[0])
            object.__setattr__(self, "slot_columns", places[1])
        if self.attention.device.type != "cpu":
            return  # each check would make the CPU wait
        if (self.attention[:, 1:] & ~self.attention[:, :-1]).any():
            raise ModelError("a token follows padding", "pad training text on the right")
        if (self.supervised & ~self.attention).any():
            raise ModelError("padding is marked as supervised", "supervise real tokens only")
        if not self.supervised.any():
            raise ModelError(
                "no token of the batch is supervised", "drop examples whose answer was cut off"
            )
        if self.slots is not None and (self.slots & self.supervised).any():
            raise ModelError("the place of an image is marked as supervised")
        if self.segments is not None:
            _check_segments(self.segments, self.attention, self.supervised)

    def showing(self, patches: Float[Tensor, "image patch vision"]) -> "Batch":
        """Return the same texts about other patch embeddings of the same shape."""
        changed = copy.copy(self)  # what was looked up once is kept
        object.__setattr__(changed, "patches", patches)
        return changed

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> "Batch":
        """The same batch on another device."""
        moved = copy.copy(self)
        for name, value in vars(self).items():
            if value is not None:
                object.__setattr__(moved, name, value.to(device, non_blocking=non_blocking))
        return moved


def _check_segments(
    segments: Int64[Tensor, "batch text"],
    attention: Bool[Tensor, "batch text"],
    supervised: Bool[Tensor, "batch text"],
) -> None:
    if segments.shape != attention.shape:
        raise ModelError(
            f"segments of shape {list(segments.shape)} for text of shape {list(attention.shape)}"
        )
    first, steps = segments[:, :1], segments.diff(dim=1)[attention[:, 1:]]
    if ((first != 0) & (first != SHARED)).any() or ((steps != 0) & (steps != 1)).any():
        raise ModelError("segments must number the examples of a row in order: 0, 0, 1, 1, 2, …")
    if (supervised & (segments == SHARED)).any():
        raise ModelError("a token that several examples share cannot be supervised")
