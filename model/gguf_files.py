"""GGUF files by the package `gguf`: what both files of an export need."""

import logging
from pathlib import Path

import gguf
import torch
from torch import Tensor

# llama.cpp reads norms and biases in this type only.
_VECTOR = gguf.GGMLQuantizationType.F32


def new_writer(path: Path, architecture: str, kind: str, name: str) -> gguf.GGUFWriter:
    """Return a writer of a GGUF file of a kind: `model` or `mmproj`."""
    logging.getLogger("gguf.gguf_writer").setLevel(logging.WARNING)
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_type(kind)
    writer.add_name(name)
    return writer


def add_tensor(writer: gguf.GGUFWriter, name: str, tensor: Tensor) -> None:
    """Add a tensor in its type; vectors in float32, which is the only type llama.cpp reads."""
    kind = _VECTOR
    if tensor.dtype == torch.bfloat16 and tensor.ndim > 1:
        kind = gguf.GGMLQuantizationType.BF16
    values = tensor.detach().float().contiguous().numpy()
    writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)


def write_file(writer: gguf.GGUFWriter) -> None:
    """Write what was added, and close the file."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
