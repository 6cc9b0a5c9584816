"""Mixtures of experts: every position passes through a few of many SwiGLUs, which a router chooses for it.

Positions are sorted by expert, and each expert that has any computes a product of them: the cost grows with the
positions, not with positions x experts. On CUDA torch's grouped product takes all experts at once, without waiting for
the device; elsewhere it is one product for each expert.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.errors import ModelError
from .attention import wide

_ROWS_AT_ONCE = 1 << 15  # positions times experts of each: more are computed in pieces, which bounds the memory
_ALIGNED = 8  # the grouped kernel wants rows of a multiple of 16 bytes, in bfloat16


@dataclass(frozen=True)
class Experts:
    """Which experts there are, and how a position's are chosen and weighed.

    Attributes:
        count, chosen: of experts, and of those that a position passes through.
        width: hidden size of each expert's SwiGLU.
        shared: hidden size of the SwiGLU that every position passes through besides; 0: none.
        sigmoid: scores are the sigmoid of each logit; else the softmax of all.
        normalised: the weights of the chosen are divided by their sum.
        scale: what the weights are multiplied by then.
        groups, kept: experts stand in so many groups, of which the ones with the best two scores, summed, are kept
            (DeepSeek-V3, arXiv 2412.19437, section 2.1.2).
        offset: an offset of each expert is added to its score: "" no, "choice": to choose by, "weight": for good.
        dense: layers that have an ordinary SwiGLU instead.
        gelu: the gate is GELU (its tanh form) instead of SiLU.
    """

    count: int
    chosen: int
    width: int
    shared: int = 0
    sigmoid: bool = False
    normalised: bool = False
    scale: float = 1.0
    groups: int = 1
    kept: int = 1
    offset: str = ""
    dense: tuple[int, ...] = ()
    gelu: bool = False

    def __post_init__(self) -> None:
        """Refuse numbers that do not fit each other.

        Raises:
            ModelError: names them.
        """
        if self.chosen > self.count:
            raise ModelError(f"config.json has {self.count} experts, of which each token has {self.chosen}")
        if self.count % self.groups or (self.groups > 1 and self.count // self.groups < 2):
            raise ModelError(
                f"config.json has {self.count} experts in {self.groups} groups; groups must be equal, of two at least"
            )
        if self.kept > self.groups or self.kept * (self.count // self.groups) < self.chosen:
            raise ModelError(
                f"config.json has {self.groups} groups of {self.count // self.groups} experts and keeps {self.kept} "
                f"groups, out of which each token has {self.chosen} experts"
            )

    def stacked(self, width: int) -> dict[str, dict[str, int]]:
        """Of the products, the parts that checkpoints keep apart, by rows; ``width`` is that of the hidden states."""
        every = range(self.count)
        return {
            "experts_in": dict.fromkeys((f"experts.{e}.{half}" for e in every for half in ("gate", "up")), self.width),
            "experts_out": dict.fromkeys((f"experts.{e}.down" for e in every), width),
            "shared_in": {"shared.gate": self.shared, "shared.up": self.shared},
            "shared_out": {"shared.down": width},
        }

    @property
    def tensors(self) -> Iterator[str]:
        """The names of a checkpoint's tensors, as ours, inside a mixture; ``{}`` stands for an expert's number."""
        yield "router.weight"
        if self.offset:
            yield "router.offset"
        for whose in ("experts.{}", *(("shared",) if self.shared else ())):
            yield from (f"{whose}.{part}.weight" for part in ("gate", "up", "down"))


class Router(nn.Module):
    """Chooses the experts of each position, in float32 at least, in which its weights are kept too."""

    def __init__(self, width: int, experts: Experts) -> None:
        super().__init__()
        self.experts = experts
        self.weight = nn.Parameter(torch.empty(experts.count, width))
        if experts.offset:
            self.offset = nn.Parameter(torch.zeros(experts.count))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The experts ``[N, K]`` of each of ``x [N, C]``, best first, and their weights, float32 at least."""
        e = self.experts
        logits = F.linear(wide(x), wide(self.weight))
        scores = logits.sigmoid() if e.sigmoid else logits.softmax(-1)
        ranked = scores + wide(self.offset) if e.offset else scores
        chosen = (ranked if e.groups == 1 else _kept(ranked, e.groups, e.kept)).topk(e.chosen, -1).indices
        weight = (ranked if e.offset == "weight" else scores).gather(-1, chosen)
        if e.normalised:
            weight = weight / (weight.sum(-1, keepdim=True) + 1e-20)
        return chosen, weight * e.scale


def _kept(ranked: Tensor, groups: int, kept: int) -> Tensor:
    """Scores ``[N, E]``, with -inf outside the groups that are kept."""
    apart = ranked.view(len(ranked), groups, -1)
    best = apart.topk(2, -1).values.sum(-1).topk(kept, -1).indices
    out = torch.ones(apart.shape[:-1], dtype=torch.bool, device=ranked.device).scatter_(-1, best, False)
    return apart.masked_fill(out[..., None], -torch.inf).view_as(ranked)


@dataclass(frozen=True)
class Groups:
    """Where the rows of each expert end, the rows being sorted by expert.

    Attributes:
        ends: ``[E]`` int32.
        host: the same where products are made one by one; None: one grouped product.
    """

    ends: Tensor
    host: list[int] | None


class Stack(nn.Module):
    """A product with a weight of each expert's own; the weights stand below each other, ``[E * outputs, inputs]``."""

    def __init__(self, count: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.count = count
        self.weight = nn.Parameter(torch.empty(count * outputs, inputs))

    def forward(self, x: Tensor, groups: Groups) -> Tensor:
        """``[R, outputs]`` of rows ``x [R, inputs]``, each with its expert's weight."""
        weight = self.weight.view(self.count, -1, self.weight.shape[1])
        if groups.host is None:
            out: Tensor = _grouped()(x, weight.mT, offs=groups.ends)
            return out
        begins = [0, *groups.host[:-1]]
        parts = [F.linear(x[a:b], weight[e]) for e, (a, b) in enumerate(zip(begins, groups.host, strict=True)) if a < b]
        return torch.cat(parts) if parts else x.new_empty(0, weight.shape[1])


class Mixture(nn.Module):
    """The feed-forward part of a layer with experts."""

    def __init__(self, width: int, experts: Experts, make: Callable[[int, int], nn.Module]) -> None:
        """``make`` is the factory of ordinary products."""
        super().__init__()
        self.experts = experts
        self.router = Router(width, experts)
        self.experts_in = Stack(experts.count, width, 2 * experts.width)
        self.experts_out = Stack(experts.count, experts.width, width)
        if experts.shared:
            self.shared_in, self.shared_out = make(width, 2 * experts.shared), make(experts.shared, width)

    def forward(self, x: Tensor, seen: Tensor | None = None) -> Tensor:
        """The weighed sum of the chosen experts, and the shared one, of ``x [..., C]``, normalised; ``seen [..., C]``:
        what the router looks at, where that is something else.
        """
        flat, looked = x.flatten(0, -2), (x if seen is None else seen).flatten(0, -2)
        many = max(1, _ROWS_AT_ONCE // self.experts.chosen)
        parts = [self.routed(*piece) for piece in zip(torch.split(flat, many), torch.split(looked, many), strict=True)]
        out = torch.cat(parts) if len(parts) > 1 else parts[0]
        if self.experts.shared:
            gate, up = self.shared_in(flat).chunk(2, -1)
            out = out + self.shared_out(F.silu(gate) * up)
        return out.view_as(x)

    def routed(self, x: Tensor, seen: Tensor) -> Tensor:
        """The weighed sum of the chosen experts alone, of ``x [N, C]``, chosen by ``seen [N, C]``."""
        chosen, weight = self.router(seen)
        expert, order = chosen.flatten().sort(stable=True)
        every = torch.arange(self.experts.count, device=x.device)
        ends = torch.searchsorted(expert, every, right=True).to(torch.int32)
        groups = Groups(ends, None if self.grouped else ends.tolist())
        gate, up = self.experts_in(x[order // self.experts.chosen], groups).chunk(2, -1)
        gate = F.gelu(gate, approximate="tanh") if self.experts.gelu else F.silu(gate)
        inner = (gate * up * weight.flatten()[order, None]).to(x.dtype)  # weighed here, where rows are short
        rows = self.experts_out(inner, groups)
        back = torch.empty_like(rows).index_copy(0, order, rows)
        return back.view(len(x), self.experts.chosen, x.shape[1]).sum(1)

    @property
    def idle(self) -> int:
        """Parameters of the experts that a position is not sent to."""
        both = self.experts_in.weight.numel() + self.experts_out.weight.numel()
        return both * (self.experts.count - self.experts.chosen) // self.experts.count

    @property
    def grouped(self) -> bool:
        """Whether one grouped product computes all experts, and nothing waits for the device."""
        weight = self.experts_in.weight
        sizes = (weight.shape[1], self.experts.width)
        fits = weight.is_cuda and weight.dtype == torch.bfloat16 and not any(size % _ALIGNED for size in sizes)
        return fits and _has_kernel(weight.device)


def _grouped() -> Any:
    """The grouped product of torch, by its public name where it has one; None: torch has none."""
    return getattr(F, "grouped_mm", None) or getattr(torch, "_grouped_mm", None)


@lru_cache
def _has_kernel(device: torch.device) -> bool:
    """Whether torch's grouped product is a kernel there, and computes what the products one by one do."""
    if _grouped() is None or torch.cuda.get_device_capability(device) < (9, 0):
        return False
    x = torch.ones(5, 16, dtype=torch.bfloat16, device=device)
    weight = torch.arange(3, dtype=torch.bfloat16, device=device)[:, None, None].expand(3, 8, 16).contiguous()
    ends = torch.tensor([2, 2, 5], dtype=torch.int32, device=device)
    try:
        found = _grouped()(x, weight.mT, offs=ends)
    except (RuntimeError, TypeError):  # not for this device or dtype, or of another signature
        return False
    return bool((found[:2] == 0).all() and (found[2:] == 32).all())
