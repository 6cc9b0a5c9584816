"""Where a model is put, and in which number format."""

from __future__ import annotations

import torch

from ..core.errors import ModelError
from ..core.precision import native
from .tensors import DTYPES
from .weights import Checkpoint


def pick_device(device: str) -> torch.device:
    """A usable device for ``"auto"`` or a device string, or a ModelError."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.zeros(1, device=chosen, dtype=torch.float64).cpu()  # confidences are float64
    except (RuntimeError, AssertionError, TypeError, NotImplementedError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(
            f"device {device!r} cannot be used here; accepted: auto, cpu, cuda, cuda:N ({reason})"
        ) from None
    return chosen


def pick_dtype(dtype: str, checkpoint: Checkpoint, device: torch.device) -> torch.dtype:
    """The dtype for ``"auto"`` or a name, or a ModelError."""
    if dtype != "auto":
        if not isinstance(dtype, str) or dtype not in DTYPES:
            raise ModelError(f"unknown dtype {dtype!r}; accepted: auto, {', '.join(DTYPES)}")
        return DTYPES[dtype]
    return native(checkpoint.dtype, device)
