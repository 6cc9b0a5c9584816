"""The tensors of a checkpoint by name, wherever they lie: a seam, and the kinds of file that are read."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..core.errors import ModelError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}
_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d+)-of-(?P<count>\d+)\.safetensors")
_SAFE, _TORCH = "model.safetensors", "pytorch_model.bin"
_PACKED = {".g_idx": "GPTQ", ".qweight": "AWQ", ".weight_packed": "compressed-tensors", ".absmax": "bitsandbytes"}
_CONVERT = (
    "python -c \"import torch, safetensors.torch as s; t = torch.load('%s', weights_only=False); "
    "s.save_file({n: x.contiguous().clone() for n, x in t.items()}, 'model.safetensors')\""
)


class Tensors(Protocol):
    """The tensors of a checkpoint, each read when it is asked for."""

    def names(self) -> Collection[str]:
        """All names, those of one file together."""

    def file(self, name: str) -> Path:
        """Where a tensor is, for messages."""

    def shape(self, name: str) -> list[int]:
        """The shape of a tensor, which is not read for it where that can be helped.

        Raises:
            ModelError: it is not where it is said to be, or its file cannot be read.
        """

    def read(self, name: str) -> Tensor:
        """A tensor of floating point numbers; it may be a view of the file.

        Raises:
            ModelError: as :meth:`shape`, or it holds other than floating point numbers.
        """


class _Files:
    """Tensors in several files, of which one is open at a time; see :class:`Tensors`."""

    def __init__(self, files: Mapping[str, Path]) -> None:
        """The file of each tensor, by its name."""
        self._files = {name: files[name] for name in sorted(files, key=lambda name: (str(files[name]), name))}
        self._open: tuple[Path, Any] | None = None

    def names(self) -> Collection[str]:
        """All names, file by file."""
        return self._files.keys()

    def file(self, name: str) -> Path:
        """Where a tensor is."""
        return self._files[name]

    def _opened(self, name: str, opener: Callable[[Path], Any]) -> Any:
        file = self._files[name]
        if self._open is None or self._open[0] != file:
            self._open = file, opener(file)
        return self._open[1]


class SafetensorsFiles(_Files):
    """Tensors in safetensors files."""

    def shape(self, name: str) -> list[int]:
        """See :class:`Tensors`."""
        return list(self._get(name, "get_slice").get_shape())

    def read(self, name: str) -> Tensor:
        """See :class:`Tensors`."""
        return _checked(self.raw(name), name, self.file(name))

    def raw(self, name: str) -> Tensor:
        """As :meth:`read`, of any dtype."""
        found: Tensor = self._get(name, "get_tensor")
        return found

    def _get(self, name: str, how: str) -> Any:
        try:
            return getattr(self._opened(name, open_safetensors), how)(name)
        except SafetensorError as error:
            raise ModelError(f"{self.file(name)}: {name} cannot be read: {error}") from None


class TorchFiles(_Files):
    """Tensors in files of ``torch.save``, read without running anything in them."""

    def shape(self, name: str) -> list[int]:
        """See :class:`Tensors`."""
        return list(self._get(name).shape)

    def read(self, name: str) -> Tensor:
        """See :class:`Tensors`."""
        return _checked(self._get(name), name, self.file(name))

    def _get(self, name: str) -> Tensor:
        held: dict[str, Tensor] = self._opened(name, open_torch)
        if name not in held:
            raise ModelError(f"{self.file(name)}: {name} cannot be read: the index names this file, which lacks it")
        return held[name]


def tensors_of(folder: Path) -> Tensors:
    """The tensors of a folder: ``model.safetensors``, sharded with or without index, or ``pytorch_model.bin``.

    Raises:
        ModelError: none of these, a shard that is missing, a file that cannot be read, quantised weights.
    """
    found = _find(folder)
    for ending, method in _PACKED.items():
        packed = next((name for name in found.names() if name.endswith(ending)), None)
        if packed is not None:
            raise ModelError(
                f"{found.file(packed)} is quantised by {method}: it holds {packed}; quantised weights are not "
                "supported, give the checkpoint that they were made from"
            )
    return found


def _find(folder: Path) -> Tensors:
    for name, kind, opener in ((_SAFE, SafetensorsFiles, open_safetensors), (_TORCH, TorchFiles, open_torch)):
        single, index = folder / name, folder / f"{name}.index.json"
        if single.exists():
            return kind(dict.fromkeys(opener(single).keys(), single))
        if index.exists():
            return kind(_indexed(folder, index))
        if name == _SAFE and (shards := _shards(folder)):
            return kind({key: shard for shard in shards for key in list(opener(shard).keys())})
    raise ModelError(
        f"{folder} has no {_SAFE} and no {_SAFE}.index.json, no other *.safetensors, and no {_TORCH}: "
        "expected the weights in one of these"
    )


def _indexed(folder: Path, index: Path) -> dict[str, Path]:
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, dict) or not shards or not all(isinstance(s, str) for s in shards.values()):
        raise ModelError(f"{index} has no 'weight_map' from weight names to file names")
    missing = sorted({s for s in shards.values() if not (folder / s).exists()})
    if missing:
        raise ModelError(f"{folder}: shards missing: {', '.join(missing)}")
    return {name: folder / shard for name, shard in shards.items()}


def _shards(folder: Path) -> list[Path]:
    """The safetensors files of a folder without index: one of any name, or all parts of one checkpoint.

    Raises:
        ModelError: parts are missing, or it is not clear which files belong together.
    """
    files = sorted(f for f in folder.glob("*.safetensors") if not f.name.startswith("adapter_"))
    parts = [_SHARD.fullmatch(f.name) for f in files]
    kinds = {(p["stem"], p["count"]) if p else None for p in parts}
    if len(files) > 1 and (len(kinds) > 1 or None in kinds):
        names = ", ".join(f.name for f in files[:4])
        raise ModelError(
            f"{folder} has several safetensors files ({names}) and no {_SAFE}.index.json to say which count"
        )
    for stem, count in (kind for kind in kinds if kind):
        wanted = [f"{stem}-{i:0{len(count)}}-of-{count}.safetensors" for i in range(1, int(count) + 1)]
        missing = sorted(set(wanted) - {f.name for f in files})
        if missing:
            raise ModelError(f"{folder}: shards missing: {', '.join(missing[:4])}")
    return files


def open_safetensors(path: Path) -> Any:
    """A safetensors file, or a ModelError that names it and says what is wrong."""
    _readable(path)
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path} is not a complete safetensors file (truncated download?): {error}") from None


def open_torch(path: Path) -> dict[str, Tensor]:
    """The tensors of a file of ``torch.save``, or a ModelError that names it and says what is wrong."""
    _readable(path)
    try:
        held = torch.load(path, map_location="cpu", weights_only=True, mmap=_zipped(path))
    except pickle.UnpicklingError as error:
        raise ModelError(
            f"{path} holds more than tensors, and what else it holds is not run: {_first(error)}. If you trust whoever "
            f"made it, convert it: {_CONVERT % path.name}"
        ) from None
    except Exception as error:  # torch and its zip reader raise many kinds for a broken file
        raise ModelError(
            f"{path} is not a complete file of torch.save (truncated download?): {_first(error)}"
        ) from None
    if not isinstance(held, dict) or not all(isinstance(t, Tensor) for t in held.values()):
        raise ModelError(f"{path} does not hold tensors by name")
    return held


def _zipped(path: Path) -> bool:
    """Whether a file is of torch 1.6 or later, whose tensors need not all be read at once."""
    with path.open("rb") as file:
        return file.read(2) == b"PK"


def _checked(tensor: Tensor, name: str, file: Path) -> Tensor:
    """The tensor, or a ModelError where it holds other than floating point numbers."""
    if tensor.dtype not in DTYPES.values():
        raise ModelError(f"{file}: {name} is {tensor.dtype}; supported are {', '.join(DTYPES)}")
    return tensor


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file, or a ModelError that names it."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{path.parent} has no {path.name}") from None
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} cannot be read: {error}") from None
    if not isinstance(value, dict):
        raise ModelError(f"{path} does not hold a JSON object")
    return value


def _readable(path: Path) -> None:
    """Tell what the system says of a file apart from what is wrong inside it."""
    try:
        path.open("rb").close()
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from None


def _first(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def named_dtype(config: Mapping[str, Any]) -> torch.dtype | None:
    """The dtype that a config names, by the old key or the new; None where it names none that is known."""
    named = (str(config.get(key)).removeprefix("torch.") for key in ("torch_dtype", "dtype"))
    return next((DTYPES[name] for name in named if name in DTYPES), None)


def first_dtype(tensors: Tensors) -> torch.dtype:
    """That of the first tensor; float32 where there is none."""
    first = next(iter(tensors.names()), None)
    return torch.float32 if first is None else tensors.read(first).dtype
