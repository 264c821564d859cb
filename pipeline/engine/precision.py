"""In which precision training computes on a device, and how its steps are made fast there."""

from collections.abc import Generator
from contextlib import contextmanager
from typing import TypeVar

import torch
from peft.helpers import disable_input_dtype_casting
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from pipeline.engine.devices import pick_device
from pipeline.engine.stage import StageContext
from pipeline.recipe.parts import TrainingPart

P = TypeVar("P", bound=TrainingPart)


def settle_precision(part: P, context: StageContext) -> P:
    """Return the part with the precision that `auto` means on this machine, and say which."""
    if part.precision != "auto":
        return part
    device = pick_device(context.settings)
    precision = "bf16" if computes_bf16(device) else "fp32"
    why = "has" if precision == "bf16" else "has no"
    context.report.say(f"  computing in {precision}: this {device} {why} instructions for bf16")
    return part.model_copy(update={"precision": precision})


def computes_bf16(device: str) -> bool:
    """Whether `cuda` or `cpu` has instructions for products in bf16.

    Without them a product in bf16 takes several times as long as in fp32. If torch cannot report
    a CPU's capabilities, the answer is no.
    """
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = getattr(torch.cpu, "get_capabilities", dict)
    return any(has for name, has in capabilities().items() if "bf16" in name)


@contextmanager
def fast_steps(device: str, precision: str, language_model: nn.Module) -> Generator[None]:
    """Compute training steps as fast as the device and the precision allow.

    Autocast casts the inputs of a product, and adapters share the cast input of the layer that they
    adapt. peft would first cast it back to float32, with the same result: 15 % of a step with
    SmolLM2-135M on a CPU.
    """
    with (
        training_attention(device, precision),
        disable_input_dtype_casting(language_model, active=precision == "bf16"),
    ):
        yield


@contextmanager
def training_attention(device: str, precision: str) -> Generator[None]:
    """Compute attention as products and a softmax on a CPU in bf16; elsewhere torch chooses.

    The backward pass of torch's fused kernel for CPUs is slow in bf16. With SmolLM2-135M and 1,328
    positions on two cores with AMX, a step took 3.26 s with it and 2.15 s without.
    """
    if device != "cpu" or precision != "bf16":
        yield
        return
    allowed = torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed()
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)  # covers CPUs, too
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(allowed)
