"""A LoRA layer that adds its low-rank product inside the product, without copies of its width."""

from typing import Any

import torch
from peft.tuners.lora import Linear
from torch import Tensor, nn


class InPlaceLora(Linear):
    """peft's LoRA layer (Hu et al. 2021, arXiv 2106.09685) with fewer passes over memory.

    peft computes the product of the frozen layer, that of the adapter, a scaled copy of it, and
    their sum: four tensors of the layer's width. Here the adapter's product is added to the
    frozen layer's while it is computed. What peft can do beyond one plain adapter is left to peft.
    """

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return the adapted product of inputs [..., in] as [..., out], in the type of the layer's.

        Args:
            x: Inputs.
            *args: Handed on to peft.
            **kwargs: Handed on to peft.
        """
        name = None if args or kwargs else self._plain_adapter(x)
        if name is None:
            return super().forward(x, *args, **kwargs)
        rows = x.reshape(-1, x.shape[-1])
        # Nobody else has this result: a product keeps none for its backward pass.
        result = self.base_layer(rows)
        inner = self.lora_A[name](self.lora_dropout[name](rows)) * self.scaling[name]
        # Autocast leaves operations in place alone.
        outer = self.lora_B[name].get_parameter("weight").t().to(result.dtype)
        return result.addmm_(inner.to(result.dtype), outer).reshape(*x.shape[:-1], -1)

    def _plain_adapter(self, x: Tensor) -> str | None:
        """Return the name of the only adapter if nothing but its product is to be added."""
        if self.disable_adapters or self.merged or len(self.active_adapters) != 1:
            return None
        (name,) = self.active_adapters
        if name not in self.lora_A or name in self.lora_variant:
            return None
        if self.lora_B[name].bias is not None or type(self.base_layer) is not nn.Linear:
            return None
        types = {x.dtype, self.base_layer.weight.dtype, self.lora_A[name].weight.dtype}
        alike = len(types) == 1 or torch.is_autocast_enabled(x.device.type)
        return name if alike else None
