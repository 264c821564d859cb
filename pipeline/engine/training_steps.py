"""How training steps are made fast on a device, and what stands for their work in a measurement."""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

import torch
from peft.helpers import disable_input_dtype_casting
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AutoConfig, PreTrainedModel

from pipeline.errors import PipelineError

ROWS = 512  # of the measured products


def language_product(folder: Path, precision: str) -> Callable[[], object]:
    """Return a product of the size of a language model's feed-forward layers.

    Args:
        folder: The language model, in Hugging Face's layout.
        precision: fp32 or bf16.
    """
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    width = config.hidden_size
    inner = getattr(config, "intermediate_size", None) or 4 * width  # GPT-2 names none
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    rows, weights = torch.ones(ROWS, width, dtype=dtype), torch.ones(inner, width, dtype=dtype)
    return lambda: functional.linear(rows, weights)


@contextmanager
def fast_steps(
    device: str, precision: str, attention: str, language_model: PreTrainedModel
) -> Generator[None]:
    """Compute training steps as fast as the device and the precision allow.

    Autocast casts the inputs of a product, and adapters share the cast input of the layer that they
    adapt. peft would first cast it back to float32, with the same result: 15 % of a step with
    SmolLM2-135M on a CPU.
    """
    with (
        attention_by(attention, device, language_model),
        training_attention(device, precision),
        disable_input_dtype_casting(language_model, active=precision == "bf16"),
    ):
        yield


@contextmanager
def attention_by(name: str, device: str, language_model: PreTrainedModel) -> Generator[None]:
    """Compute a language model's attention by another implementation of transformers.

    Args:
        name: sdpa leaves the one that the model was loaded with; or flex_attention.
        device: The device.
        language_model: The model.

    Raises:
        PipelineError: flex_attention is asked for on a CPU, where it has no backward pass, or of a
            model that cannot be computed by it.
    """
    if name == "sdpa":
        yield
        return
    if device == "cpu":
        raise PipelineError(
            "flex_attention cannot be trained on a CPU: it has no backward pass there",
            "set attention to sdpa",
        )
    before = language_model.config._attn_implementation
    try:
        language_model.set_attn_implementation(name)
    except ValueError as error:
        family = language_model.config.model_type
        raise PipelineError(
            f"{family} cannot be computed by {name}: {error}", "set attention to sdpa"
        ) from None
    try:
        yield
    finally:
        language_model.set_attn_implementation(before)


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
