"""Weights in the order in which oneDNN multiplies: on a CPU, products with few rows then cost as much as with one.

torch brings a weight of bfloat16 into that order in every product. For few rows that takes as long as the product
itself. Prepared once, a product with 16 rows takes hardly longer than with one: what verifying a token tree needs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .transformer import Linear, Transformer

ROWS = 8  # that the order is made for
DTYPES = (torch.bfloat16,)  # in float32 a product with one row is faster from the plain weight


class Packed(Linear):
    """A product whose weight is held in oneDNN's order alone."""

    order: Tensor

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor | None) -> Packed:
        """The same product as with a plain weight ``[outputs, inputs]``."""
        with torch.device("meta"):
            made = cls(weight.shape[1], weight.shape[0], bias=False)
        made.weight = nn.Parameter(weight.new_empty(0), requires_grad=False)
        made.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)  # type: ignore[assignment]
        made.order = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), ROWS)
        return made

    def forward(self, x: Tensor) -> Tensor:
        """``[..., inputs]`` to ``[..., outputs]``."""
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.order, self.bias, "none", [], "")
        return out

    def part(self, x: Tensor, begin: int) -> Tensor:
        """The outputs from number ``begin`` on, of all that are computed."""
        return self.forward(x)[..., begin:]


def usable(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether this torch packs weights of such a network."""
    known = hasattr(torch.ops.mkldnn, "_reorder_linear_weight") and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    return device.type == "cpu" and dtype in DTYPES and known and bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]


def pack(network: Transformer) -> None:
    """Pack every product of a network on a CPU, in place; the plain weights are freed. A tied head gets its own."""
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if type(child) is Linear:
                setattr(module, name, Packed.of(child.weight, child.bias))
    if network.head is None:
        network.head = Packed.of(network.embed.weight, None)
