"""Quantised checkpoints as folders, read like any other; :mod:`unmask.models.quantised_writer` writes them.

A weight ``X.weight`` is stored as its integers under its own name, with ``X.weight_scale`` (and for int4
``X.weight_least``) beside it; ``quantization_config`` of config.json says so. All else is as it was.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import torch
from torch import Tensor

from ..core.errors import ModelError
from .quantised import KINDS, Packed
from .tensors import SafetensorsFiles, Tensors


class PackedFiles:
    """The tensors of a quantised folder; see :class:`unmask.models.tensors.Tensors`."""

    def __init__(self, files: Tensors, kind: str) -> None:
        """Read ``files`` as quantised in a kind.

        Raises:
            ModelError: not safetensors.
        """
        if not isinstance(files, SafetensorsFiles):
            raise ModelError(f"{files.file(next(iter(files.names())))}: quantised weights must be safetensors files")
        self._files, self._kind = files, KINDS[kind]
        held = set(files.names())
        self._packed = {name for name in held if f"{name}_{self._kind.extra[0]}" in held}
        beside = {f"{name}_{more}" for name in self._packed for more in self._kind.extra}
        self._names = [name for name in files.names() if name not in beside]

    def names(self) -> Collection[str]:
        """See :class:`unmask.models.tensors.Tensors`."""
        return self._names

    def file(self, name: str) -> Path:
        """Where a tensor is."""
        return self._files.file(name)

    def shape(self, name: str) -> list[int]:
        """Of the weight that is meant."""
        shape = self._files.shape(name)
        return [shape[0], 2 * shape[1]] if name in self._packed and self._kind.name == "int4" else shape

    def read(self, name: str) -> Tensor:
        """The weight that is meant, as floating point numbers."""
        found = self.packed(name)
        return self._files.read(name) if found is None else found.dense()

    def packed(self, name: str) -> Packed | None:
        """A weight as it is stored; None where it is not quantised.

        Raises:
            ModelError: its parts do not fit each other.
        """
        if name not in self._packed:
            return None
        parts = [self._files.raw(f"{name}{more}") for more in ("", *(f"_{m}" for m in self._kind.extra))]
        values, *more = parts
        integers = torch.int8 if self._kind.name == "int8" else torch.uint8
        rows = {len(part) for part in parts if part.dim()}
        wrong = values.dtype != integers or values.dim() != 2 or len(rows) != 1
        if wrong or not all(m.dtype.is_floating_point for m in more):
            shapes = ", ".join(f"{str(p.dtype).removeprefix('torch.')} {list(p.shape)}" for p in parts)
            raise ModelError(f"{self.file(name)}: {name} is no weight in {self._kind.name}: its parts are {shapes}")
        return self._kind(*parts)
