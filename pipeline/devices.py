"""Which device computes, and with how many threads."""

import torch

from pipeline.errors import PipelineError
from pipeline.settings import Settings


def pick_device(settings: Settings) -> str:
    """Return `cuda` or `cpu` as the settings and the machine allow, and set the thread count.

    Raises:
        PipelineError: A GPU was asked for and there is none.
    """
    use_threads(settings)
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise PipelineError("no CUDA device was found", "use --device cpu or auto")
    if settings.device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return settings.device


def use_threads(settings: Settings) -> None:
    """Have torch compute with as many CPU threads as the settings allow."""
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
