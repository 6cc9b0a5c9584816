"""Memory of tensors, counted operation by operation: what no allocator of a CPU tells."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Alive(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of the tensors made under it: ``now`` alive, and the ``peak``."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now: int = 0
        self.peak: int = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run, and count what is new."""
        given = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if _has_memory(t)}
        out = function(*args, **(kwargs or {}))
        for tensor in filter(_has_memory, tree_leaves(out)):
            storage = tensor.untyped_storage()
            if storage._cdata not in given | self._seen:
                self._seen.add(storage._cdata)
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._gone, storage._cdata, storage.nbytes())
        return out

    def _gone(self, place: int, size: int) -> None:
        self._seen.discard(place)
        self.now -= size


def _has_memory(value: Any) -> bool:
    return isinstance(value, Tensor) and value.layout == torch.strided


def peak_bytes(call: Callable[[], object], device: torch.device) -> int:
    """Most bytes of tensors at a time during a call, on top of what there is before it. On CUDA by the allocator,
    elsewhere by watching operations: what a kernel takes for itself is not seen.
    """
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        torch.cuda.synchronize(device)
        return int(torch.cuda.max_memory_allocated(device) - before)
    with Alive() as alive:
        call()
    return int(alive.peak)
