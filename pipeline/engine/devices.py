"""Which device computes, and with how many threads."""

from importlib.util import find_spec

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


def check_quantization(settings: Settings) -> None:
    """Refuse to quantize a language model to 4 bits where that is not possible.

    Raises:
        PipelineError: There is no CUDA device, bitsandbytes is missing, or the weights would have
            to be sharded over devices.
    """
    if settings.device == "cpu" or not torch.cuda.is_available():
        raise PipelineError(
            "finetune.quantize=nf4 needs a CUDA device", "use --set finetune.quantize=none"
        )
    if find_spec("bitsandbytes") is None:
        raise PipelineError(
            "finetune.quantize=nf4 needs bitsandbytes", "pip install 'phivision[qlora]'"
        )
    if settings.strategy == "fsdp":
        raise PipelineError("fsdp cannot shard 4-bit weights", "use PHIVISION_STRATEGY=ddp")


def check_optimizer(settings: Settings, optimizer: str) -> None:
    """Refuse an optimizer with moments in 8 bits where that is not possible.

    Raises:
        PipelineError: bitsandbytes is missing, or the moments would have to be sharded.
    """
    if optimizer != "adamw_8bit":
        return
    if find_spec("bitsandbytes") is None:
        raise PipelineError(
            "optimizer=adamw_8bit needs bitsandbytes", "pip install 'phivision[qlora]'"
        )
    if settings.strategy == "fsdp":
        raise PipelineError("fsdp cannot shard moments in 8 bits", "use PHIVISION_STRATEGY=ddp")


def use_threads(settings: Settings) -> None:
    """Have torch compute with as many CPU threads as the settings allow."""
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
