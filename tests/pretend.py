"""A GPU that is not there: tensors on the CPU that say they are on CUDA, and refuse to be mixed with others.

What runs on it takes the paths of CUDA with the arithmetic of the CPU, and fails where a tensor has been made on
the wrong device. What the host waits for is counted.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

CUDA = torch.device("cuda", 0)
WAITS = {
    "tolist",
    "item",
    "__bool__",
    "__int__",
    "__float__",
    "__index__",
    "__len__bool",
    "nonzero",
    "masked_select",
    "cpu",
}
ANYWHERE = {"__get__", "__set__", "to", "copy_", "__getitem__", "__setitem__"}  # these take tensors of several devices


class Pretending(Tensor):
    """A tensor that says it is on CUDA."""

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return CUDA

    @property
    def is_cuda(self) -> bool:  # type: ignore[override]
        return True

    def __deepcopy__(self, memo: Any) -> Tensor:
        return self.clone()

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        if name not in ANYWHERE:
            _check(func, args)
            _check(func, kwargs.values())
        if name in WAITS:
            waits[name] += 1
        if name == "to":
            return _moved(func, args, kwargs)
        if kwargs.get("device") is not None:
            assert torch.device(kwargs["device"]).type == "cuda", f"{name} on {kwargs['device']}"
            kwargs["device"] = "cpu"
        with torch._C.DisableTorchFunctionSubclass():
            found = func(*args, **kwargs)
            return _there(found)


waits: Counter[str] = Counter()


def _there(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value if isinstance(value, Pretending) else value.as_subclass(Pretending)
    return type(value)(map(_there, value)) if isinstance(value, (list, tuple)) else value


def _check(func: Any, values: Any) -> None:
    for value in values:
        if isinstance(value, (list, tuple)):
            _check(func, value)
        elif isinstance(value, Tensor) and not isinstance(value, Pretending) and value.dim():
            raise RuntimeError(f"{func}: a tensor of shape {list(value.shape)} is on the CPU, others are on CUDA")


def _moved(func: Any, args: Any, kwargs: Any) -> Tensor:
    tensor, *rest = args
    where = [a for a in (*rest, *kwargs.values()) if isinstance(a, (torch.device, str))]
    like = [a for a in rest if isinstance(a, Tensor)]
    plain = tensor.as_subclass(Tensor)
    kinds = [a for a in (*rest, *kwargs.values()) if isinstance(a, torch.dtype)] + [a.dtype for a in like]
    if kinds:
        plain = plain.to(kinds[0])
    there = torch.device(where[0]).type == "cuda" if where else isinstance(like[0], Pretending) if like else True
    if not there:
        waits["to"] += 1
    return plain.as_subclass(Pretending) if there else plain


class Factories(TorchFunctionMode):
    """Makes tensors that are asked for on CUDA."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not kwargs and func is not Tensor.to:
            return func(*args)
        kwargs = dict(kwargs or {})
        name, device = getattr(func, "__name__", ""), kwargs.get("device")
        if name == "to" and not isinstance(args[0], Pretending):
            where = [a for a in (*args[1:], device) if isinstance(a, (torch.device, str))]
            if where and torch.device(where[0]).type == "cuda":
                return _moved(func, args, kwargs)
        if (
            device is not None
            and torch.device(device).type == "cuda"
            and not any(issubclass(t, Pretending) for t in types)
        ):
            if name == "tensor":
                waits["tensor"] += 1
            found = func(*args, **{**kwargs, "device": "cpu"})
            return found.as_subclass(Pretending)
        return func(*args, **kwargs)


def moved(module: nn.Module) -> nn.Module:
    """A module with its weights there."""
    for name, parameter in list(module.named_parameters(recurse=False)):
        own = parameter.data.as_subclass(Pretending)
        module._parameters[name] = nn.Parameter(own, requires_grad=False)
        assert isinstance(module._parameters[name], Pretending)
    for name, buffer in list(module.named_buffers(recurse=False)):
        module._buffers[name] = buffer.as_subclass(Pretending)
    for child in module.children():
        moved(child)
    return module


class _Event:
    """A CUDA event by the clock on the wall."""

    def __init__(self, enable_timing: bool = False) -> None:
        self.at = 0.0

    def record(self) -> None:
        self.at = time.perf_counter()

    def elapsed_time(self, other: _Event) -> float:
        return 1000 * (other.at - self.at)


@contextmanager
def gpu() -> Iterator[Counter[str]]:
    """Where ``device="cuda"`` works; what the host waits for is counted."""
    waits.clear()
    with pytest.MonkeyPatch.context() as patch, Factories():
        patch.setattr(torch.cuda, "Event", _Event)
        yield waits
