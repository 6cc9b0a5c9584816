"""What the layers of a network really see."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from torch import Tensor, nn

from unmask.models.denoiser import Denoiser

LAYERS = ("qkv_proj", "o", "gate_up", "down")  # for which a position counts as computed


@dataclass
class Counter:
    """Positions that each kind of linear layer has seen, per layer, and positions of the head."""

    rows: dict[tuple[str, int], int] = field(default_factory=dict)
    head: int = 0

    def mean(self, kind: str) -> float:
        seen = [n for (name, _), n in self.rows.items() if name == kind]
        return sum(seen) / len(seen) if seen else 0.0


@contextmanager
def counting(model: Denoiser) -> Iterator[Counter]:
    """Counts while the model runs."""
    counter, hooks = Counter(), []

    def watch(key: tuple[str, int]) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            counter.rows[key] = counter.rows.get(key, 0) + output.shape[:-1].numel()

        counter.rows[key] = 0
        return hook

    def head(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        counter.head += output.shape[:-1].numel()

    for i, block in enumerate(model.network.blocks):
        for kind in ("attn_norm", *LAYERS):
            hooks.append(getattr(block, kind).register_forward_hook(watch((kind, i))))
    hooks.append(model.network.head.register_forward_hook(head))
    try:
        yield counter
    finally:
        for hook in hooks:
            hook.remove()
