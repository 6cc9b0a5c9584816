"""Weights in the order in which oneDNN multiplies: on a CPU, products with few rows then cost as much as with one.

torch brings a weight into that order in every product, which takes longer than a product with few rows itself. Prepared
once, a product with 8 rows takes hardly longer than with one: what verifying a token tree needs. In float32 the plain
weight is kept for products with one row, so weights take twice the memory there.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .transformer import Linear, Transformer

ROWS = 8  # that the order is made for
BOTH = {torch.float32: True, torch.bfloat16: False}  # dtypes, and whether one row is faster from the plain weight


class Packed(Linear):
    """A product whose weight is held in oneDNN's order; for one row in float32 also as it was."""

    order: Tensor

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor | None) -> Packed:
        """The same product as with a plain weight ``[outputs, inputs]``."""
        with torch.device("meta"):
            made = cls(weight.shape[1], weight.shape[0], bias=False)
        plain = weight.detach() if BOTH[weight.dtype] else weight.new_empty(0)
        made.weight = nn.Parameter(plain, requires_grad=False)
        made.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)  # type: ignore[assignment]
        made.order = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), ROWS)
        return made

    def forward(self, x: Tensor) -> Tensor:
        """``[..., inputs]`` to ``[..., outputs]``."""
        if self.weight.numel() and (x.numel() == x.shape[-1] or x.requires_grad):
            return F.linear(x, self.weight, self.bias)
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.order, self.bias, "none", [], "")
        return out

    def part(self, x: Tensor, begin: int) -> Tensor:
        """The outputs from number ``begin`` on, of all that are computed."""
        return self.forward(x)[..., begin:]


def usable(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether this torch packs weights of such a network."""
    known = hasattr(torch.ops.mkldnn, "_reorder_linear_weight") and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    return device.type == "cpu" and dtype in BOTH and known and bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]


def pack(network: Transformer) -> None:
    """Pack every product of a network on a CPU, in place. A tied head gets its own."""
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if type(child) is Linear:
                setattr(module, name, Packed.of(child.weight, child.bias))
    if network.head is None:
        network.head = Packed.of(network.embed.weight, None)
