"""Keeping freed memory while one step follows the other with the same sizes."""

import ctypes
from collections.abc import Generator
from contextlib import contextmanager

# Numbers of glibc's mallopt(3).
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_MIB = 2**20
_MOST = 2**31 - 1  # the largest value that mallopt takes


@contextmanager
def kept_memory(device: str) -> Generator[None]:
    """Keep what is freed for the next allocation, on a CPU with glibc; else nothing changes.

    glibc gives blocks above 32 MiB back to the system as soon as they are freed, and each page of
    the next one is a page fault: of the processor's time a fifth for ViT-B/32 with batches of 128,
    and more for a convolutional encoder, whose first layers are large (docs/performance.md). Here
    they are kept, and given back at the end. That takes more memory, for pieces that are not used
    again at once. Other threads than the main one keep theirs only where all share one arena.

    Args:
        device: Where the steps are computed.
    """
    libc = ctypes.CDLL(None) if device == "cpu" else None
    if libc is None or not hasattr(libc, "gnu_get_libc_version"):
        yield
        return
    libc.mallopt(_MMAP_THRESHOLD, _MOST)
    libc.mallopt(_TRIM_THRESHOLD, _MOST)
    try:
        yield
    finally:
        # As far as glibc's own rule, which ends with the first call of mallopt, would have gone.
        libc.mallopt(_MMAP_THRESHOLD, 32 * _MIB)
        libc.mallopt(_TRIM_THRESHOLD, 64 * _MIB)
        libc.malloc_trim(0)
