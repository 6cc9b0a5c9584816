"""Write a quantised copy of a checkpoint, in the format that :mod:`unmask.models.quantised_files` reads."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from ..core.errors import ModelError
from .loading import blank
from .packing import Scheme, packed
from .weights import Checkpoint

_SHARD = 2 << 30  # bytes of one file, and so of what is in memory at any time
_KEPT = (".json", ".txt", ".jinja", ".model", ".md")  # endings of the files that come along


def quantise(checkpoint: Checkpoint, scheme: Scheme, folder: Path) -> Iterator[tuple[str, int]]:
    """Write a quantised copy of a checkpoint, the adapter merged, into an empty or new folder.

    Yields:
        The name of each tensor as it is written, and its bytes.

    Raises:
        ModelError: the folder holds something, or a weight cannot be read or quantised.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ModelError(f"{folder} is there and not an empty folder; give the name of a new one")
    names, tensors = checkpoint.names, checkpoint.tensors
    network = blank(checkpoint.description.arch)
    parts = network.parts()
    ours = {part for name in scheme.chosen(network) for part in (f"{name}.weight", *parts[f"{name}.weight"])}
    wanted = {theirs for our, theirs in names.items() if our in ours}
    written = {names[our]: theirs for our, theirs in checkpoint.family.names(checkpoint.description.arch).items()}
    checkpoint.check(network)
    folder.mkdir(parents=True, exist_ok=True)
    _copy(checkpoint, scheme, folder)
    writer = _Writer(folder)
    for name in tensors.names():
        if name not in written:
            continue
        own = written[name]
        if name in wanted:
            weight = packed(tensors, name, scheme.kind)
            fields = {f"_{more}": getattr(weight, more) for more in type(weight).extra}
            made = {f"{own}{ending}": part for ending, part in {"": weight.values, **fields}.items()}
        else:
            made = {own: tensors.read(name).to(checkpoint.dtype)}
        writer.add(made)
        yield name, sum(part.nbytes for part in made.values())
    writer.close()


class _Writer:
    """Safetensors files of a bounded size, with an index where there are several."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.held = dict[str, Tensor]()
        self.shards = list[list[str]]()

    def add(self, tensors: Mapping[str, Tensor]) -> None:
        if sum(t.nbytes for t in (*self.held.values(), *tensors.values())) > _SHARD and self.held:
            self._flush()
        self.held |= {name: tensor.contiguous().clone() for name, tensor in tensors.items()}

    def _flush(self) -> None:
        save_file(self.held, self.folder / f"part-{len(self.shards)}", metadata={"format": "pt"})
        self.shards.append(list(self.held))
        self.held.clear()

    def close(self) -> None:
        self._flush()
        count = len(self.shards)
        names = [f"model-{i + 1:05}-of-{count:05}.safetensors" for i in range(count)]
        names = names if count > 1 else ["model.safetensors"]
        for index, name in enumerate(names):
            (self.folder / f"part-{index}").rename(self.folder / name)
        if count > 1:
            where = {tensor: name for name, held in zip(names, self.shards, strict=True) for tensor in held}
            _write(self.folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": where})


def _copy(checkpoint: Checkpoint, scheme: Scheme, folder: Path) -> None:
    """Config, tokenizer and what else is no weight."""
    for file in sorted(checkpoint.folder.iterdir()):
        weights = file.name.endswith(".index.json") or file.name.startswith("adapter_")
        if file.suffix in _KEPT and not weights and not file.is_dir():
            (folder / file.name).write_bytes(file.read_bytes())
    dtype = str(checkpoint.dtype).removeprefix("torch.")
    config = {k: v for k, v in checkpoint.config.items() if k not in ("dtype", "torch_dtype")}
    _write(folder / "config.json", config | {"torch_dtype": dtype, "quantization_config": scheme.config})


def _write(file: Path, value: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(value, ensure_ascii=False, indent=1), encoding="utf-8")
