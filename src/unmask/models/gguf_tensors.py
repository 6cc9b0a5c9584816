"""The tensors of a GGUF file, as llama.cpp writes it: read by the package ``gguf``, made floating point numbers.

The format is specified in ggml's docs/gguf.md; how values are packed, by the package's ``quants``.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core.errors import ModelError
from .family import weight_names
from .transformer import Architecture

PLAIN = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
FORMATS = (*PLAIN, "Q8_0", "Q6_K", "Q5_K", "Q5_0", "Q5_1", "Q4_K", "Q4_0", "Q4_1", "Q3_K", "Q2_K")
_OUTER = {"embed": "token_embd", "norm": "output_norm", "head": "output"}
_LAYER = {
    "attn_norm": "attn_norm",
    "q": "attn_q",
    "k": "attn_k",
    "v": "attn_v",
    "q_norm": "attn_q_norm",
    "k_norm": "attn_k_norm",
    "o": "attn_output",
    "mlp_norm": "ffn_norm",
    "gate": "ffn_gate",
    "up": "ffn_up",
    "down": "ffn_down",
}
_MIXTURE = {f"experts.{{}}.{part}.weight": f"ffn_{part}_exps.{{}}.weight" for part in ("gate", "up", "down")}
_MIXTURE["router.weight"] = "ffn_gate_inp.weight"
_EXPERT = re.compile(r"(?P<stem>.+_exps)\.(?P<number>\d+)(?P<kind>\.\w+)")


def names(arch: Architecture) -> dict[str, str]:
    """From our parameter names to those of GGUF, an expert's number inside the name of the tensor of all."""
    return weight_names(arch, _OUTER, "blk.{}", _LAYER, _MIXTURE)


@dataclass(frozen=True)
class Gguf:
    """An open file: ``metadata`` by key, and what its tensors are."""

    path: Path
    metadata: Mapping[str, Any]
    held: Mapping[str, Any]

    @property
    def architecture(self) -> str:
        """What llama.cpp calls the kind of model."""
        return str(self.metadata.get("general.architecture"))

    @property
    def quantised(self) -> bool:
        """Whether some weight is stored in 8 bits or less."""
        return any(t.tensor_type.name not in PLAIN for t in self.held.values())

    @property
    def dtype(self) -> torch.dtype:
        """What to calculate in: that of most values where they are floating point numbers, else bfloat16."""
        many = dict.fromkeys(PLAIN, 0)
        for tensor in self.held.values():
            many[tensor.tensor_type.name] = many.get(tensor.tensor_type.name, 0) + int(tensor.n_elements)
        return PLAIN.get(max(many, key=lambda name: many[name]), torch.bfloat16)

    def number(self, key: str) -> int | None:
        """An integer of the metadata; None where it is absent.

        Raises:
            ModelError: something else.
        """
        found = self.metadata.get(key)
        if found is not None and (not isinstance(found, int) or isinstance(found, bool)):
            raise ModelError(f"{self.path}: {key} is {found!r:.80}; expected an integer")
        return found


@lru_cache(maxsize=2)
def _opened(path: Path, _state: tuple[int, int]) -> Gguf:
    """The file; once for the same size and time of change, for reading the header of a large one takes seconds."""
    try:
        from gguf import GGUFReader
    except ImportError:
        raise ModelError(f'{path}: GGUF files need the package gguf: pip install "unmask[gguf]"') from None
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise ModelError(f"{path} is not a GGUF file: it does not begin with GGUF")
    try:
        reader = GGUFReader(path)
        metadata = {name: field.contents() for name, field in reader.fields.items()}
        held = {tensor.name: tensor for tensor in reader.tensors}
        ends = [t.data_offset + t.n_bytes for t in reader.tensors]
    except Exception as error:  # the reader raises all kinds for a broken file
        raise ModelError(f"{path} is not a complete GGUF file (truncated download?): {_first(error)}") from None
    if not held or max(ends) > path.stat().st_size:
        raise ModelError(f"{path} is not a complete GGUF file (truncated download?): tensors are missing at its end")
    if int(metadata.get("split.count") or 1) > 1:
        raise ModelError(f"{path} is one part of several; join them with llama.cpp's gguf-split --merge")
    for name, tensor in held.items():
        if tensor.tensor_type.name not in FORMATS:
            raise ModelError(
                f"{path}: {name} is stored as {tensor.tensor_type.name}; supported are {', '.join(FORMATS)}"
            )
    return Gguf(path, metadata, held)


def opened(path: Path) -> Gguf:
    """Open a file.

    Raises:
        ModelError: it cannot be read, is not GGUF or not whole, holds a format that is not supported, or the package
            ``gguf`` is missing.
    """
    try:
        state = path.stat()
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from None
    return _opened(path, (state.st_size, state.st_mtime_ns))


@dataclass(frozen=True)
class GgufTensors:
    """See :class:`unmask.models.tensors.Tensors`.

    Attributes:
        gguf: the file.
        turned: heads of the tensors whose rows llama.cpp's converter has permuted, by the last but one part of their
            name: rotary pairs stand side by side there, and half a head apart here.
    """

    gguf: Gguf
    turned: Mapping[str, int]

    def names(self) -> Collection[str]:
        """All names; those of each expert where a tensor holds all of them."""
        found = list[str]()
        for name, tensor in self.gguf.held.items():
            stem, dot, kind = name.rpartition(".")
            many = int(tensor.shape[-1]) if len(tensor.shape) == 3 else 0
            found += [f"{stem}.{e}{dot}{kind}" for e in range(many)] or [name]
        return found

    def file(self, name: str) -> Path:
        """Where a tensor is."""
        return self.gguf.path

    def shape(self, name: str) -> list[int]:
        """The shape of a tensor, rows first."""
        tensor, expert = self._held(name)
        whole = [int(size) for size in reversed(tensor.shape)]
        return whole if expert is None else whole[1:]

    def _held(self, name: str) -> tuple[Any, int | None]:
        """The tensor that holds a name's, and the number of the expert in it."""
        found = None if name in self.gguf.held else _EXPERT.fullmatch(name)
        if found is None:
            return self.gguf.held[name], None
        return self.gguf.held[found["stem"] + found["kind"]], int(found["number"])

    def read(self, name: str) -> Tensor:
        """A tensor; quantised ones in float32, others as they are stored, copied out of the file."""
        from gguf.quants import dequantize

        tensor, expert = self._held(name)
        kind = tensor.tensor_type
        try:
            data = tensor.data if expert is None else tensor.data[expert]
            if kind.name in PLAIN:
                raw = torch.from_numpy(data.copy())
                found = raw.view(PLAIN[kind.name]) if kind.name == "BF16" else raw
            else:
                found = torch.from_numpy(dequantize(data, kind))
        except Exception as error:  # numpy's, for a shape that does not fit the format
            raise ModelError(f"{self.file(name)}: {name} cannot be read as {kind.name}: {_first(error)}") from None
        found = found.reshape(self.shape(name))
        heads = self.turned.get(name.split(".")[-2])
        return found if heads is None else unturned(found, heads)


def unturned(rows: Tensor, heads: int) -> Tensor:
    """Rows of queries or keys with the two halves of each head apart, from pairs side by side."""
    return rows.view(heads, -1, 2, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)


def _first(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
