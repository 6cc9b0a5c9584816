"""LoRA adapters (arXiv 2106.09685) in peft's format, merged into the weights as these are read: W + scale * B A."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core.errors import ModelError
from .config import Config, words
from .tensors import SafetensorsFiles, Tensors, TorchFiles, open_safetensors, open_torch, read_json

CONFIG = "adapter_config.json"
_FILES = ("adapter_model.safetensors", "adapter_model.bin")
_PREFIX = "base_model.model."
_PART = re.compile(r"(?P<module>.+)\.(?:lora_(?P<linear>[AB])\.weight|lora_embedding_(?P<embedding>[AB]))")
_SUPPORTED = {"peft_type": "LORA", "fan_in_fan_out": False}
_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")  # other ways to begin change the weights adapted, too
_HARMLESS = words(
    """
    auto_mapping base_model_name_or_path bias corda_config eva_config exclude_modules inference_mode layers_pattern
    layers_to_transform library_name loftq_config lora_dropout lora_ga_config megatron_core modules_to_save peft_version
    qalora_group_size revision runtime_config task_type
    """
)


@dataclass(frozen=True)
class Adapter:
    """An adapter as its folder describes it.

    Attributes:
        folder: where it lies.
        rank, alpha: of every product, but where ``ranks`` and ``alphas`` (by patterns of module names) say otherwise.
        rooted: the scale is alpha / sqrt(rank), not alpha / rank (rank-stabilised LoRA).
        pairs: the two tensors' names of each module that is adapted.
        whole: tensors that replace the model's, by the model's names.
        targets: names, or ends of names, of the modules that were trained; empty where the config has a pattern.
        tensors: of the adapter.
    """

    folder: Path
    rank: int
    alpha: float
    rooted: bool
    ranks: Mapping[str, Any]
    alphas: Mapping[str, Any]
    pairs: Mapping[str, tuple[str, str]] = field(repr=False)
    whole: Mapping[str, str] = field(repr=False)
    targets: tuple[str, ...]
    tensors: Tensors = field(repr=False)

    @staticmethod
    def read(folder: Path) -> Adapter:
        """Read the config and the names of the tensors.

        Raises:
            ModelError: no adapter, one of another kind than LoRA or of a variant that is not supported.
        """
        values = read_json(folder / CONFIG)
        config = Config(values, "LoRA", CONFIG)
        config.expect(_SUPPORTED)
        if config.get("init_lora_weights") not in _STARTS:
            raise config.wrong(
                "init_lora_weights", "true, false, 'gaussian', 'eva' or 'orthogonal': others change the weights adapted"
            )
        ranks, alphas = _patterns(config, "rank_pattern"), _patterns(config, "alpha_pattern")
        rank, alpha = config.integer("r"), config.number("lora_alpha")
        rooted = config.flag("use_rslora")
        targets = config.get("target_modules")
        named = tuple(sorted(map(str, targets))) if isinstance(targets, list) else ()
        surplus = sorted(key for key in set(values) - config.asked - _HARMLESS if values[key])
        if surplus:
            raise ModelError(
                f"{folder}: {CONFIG} has {surplus[0]} = {values[surplus[0]]!r:.80}, which is not supported: "
                "only plain LoRA can be merged"
            )
        tensors = _tensors(folder)
        pairs, whole = _pairs(tensors, folder)
        return Adapter(folder, rank, alpha, rooted, ranks, alphas, pairs, whole, named, tensors)

    def scale(self, module: str) -> float:
        """What the product of a module is multiplied with."""
        alpha, rank = _pattern(self.alphas, module, self.alpha), self.rank_of(module)
        return float(alpha / (math.sqrt(rank) if self.rooted else rank))

    def rank_of(self, module: str) -> int:
        """The rank of a module's product."""
        return int(_pattern(self.ranks, module, self.rank))

    def check(self, base: Tensors, known: Collection[str], tied: str | None) -> None:
        """Refuse an adapter of another model.

        Args:
            base: the tensors to be adapted.
            known: the names of those that the network reads.
            tied: the name of the one that the network uses twice.

        Raises:
            ModelError: names the tensor that the model does not have, or whose shape does not fit.
        """
        for module, (down, up) in self.pairs.items():
            name = f"{module}.weight"
            if name not in known:
                raise ModelError(f"{self.folder}: the adapter is of another model: this one has no {name}")
            if name == tied:
                raise ModelError(
                    f"{self.folder}: {module} is adapted, but the model uses {name} for its head, too; not supported"
                )
            rank, (a, b) = self.rank_of(module), (self.tensors.shape(down), self.tensors.shape(up))
            rows, columns = base.shape(name)
            wanted = [[rank, rows], [columns, rank]] if "embedding" in down else [[rank, columns], [rows, rank]]
            if [a, b] != wanted:
                raise ModelError(
                    f"{self.tensors.file(down)}: {module} has products of the shapes {b} and {a}; "
                    f"rank {rank} and {name} imply {wanted[1]} and {wanted[0]}"
                )
        for target in self.targets:
            trained = {m for m in (name.removesuffix(".weight") for name in known) if f".{m}".endswith(f".{target}")}
            if trained and not trained & self.pairs.keys():
                raise ModelError(f"{self.folder}: {CONFIG} names {target} in target_modules, but has no weights for it")
        for name, own in self.whole.items():
            if name not in known:
                raise ModelError(f"{self.folder}: the adapter is of another model: this one has no {name}")
            if self.tensors.shape(own) != base.shape(name):
                raise ModelError(
                    f"{self.tensors.file(own)}: {own} has shape {self.tensors.shape(own)}; "
                    f"the model's {name} has {base.shape(name)}"
                )

    def apply(self, name: str, tensor: Tensor) -> Tensor:
        """A tensor of the model, adapted; in float32 at least where it is."""
        if name in self.whole:
            return self.tensors.read(self.whole[name])
        module = name.removesuffix(".weight")
        if module == name or module not in self.pairs:
            return tensor
        down, up = self.pairs[module]
        kind = torch.promote_types(tensor.dtype, torch.float32)
        delta = self.tensors.read(up).to(kind) @ self.tensors.read(down).to(kind)
        return tensor.to(kind) + self.scale(module) * (delta.mT if "embedding" in down else delta)

    def summary(self) -> dict[str, Any]:
        """What :func:`unmask.inspection.inspect` tells."""
        return {"path": str(self.folder), "rank": self.rank, "alpha": self.alpha, "modules": len(self.pairs)}


class Adapted:
    """The tensors of a model with an adapter merged into them; see :class:`Tensors`."""

    def __init__(self, base: Tensors, adapter: Adapter) -> None:
        self._base, self._adapter = base, adapter

    def names(self) -> Collection[str]:
        """Those of the model."""
        return self._base.names()

    def file(self, name: str) -> Path:
        """Where the model's tensor is."""
        return self._base.file(name)

    def shape(self, name: str) -> list[int]:
        """See :class:`Tensors`."""
        return self._base.shape(name)

    def read(self, name: str) -> Tensor:
        """The tensor, adapted."""
        return self._adapter.apply(name, self._base.read(name))


def _tensors(folder: Path) -> Tensors:
    safe, torches = (folder / name for name in _FILES)
    if safe.exists():
        return SafetensorsFiles(dict.fromkeys(open_safetensors(safe).keys(), safe))
    if torches.exists():
        return TorchFiles(dict.fromkeys(open_torch(torches), torches))
    raise ModelError(f"{folder} has {CONFIG} and no {' or '.join(_FILES)}: an adapter without its weights")


def _pairs(tensors: Tensors, folder: Path) -> tuple[dict[str, tuple[str, str]], dict[str, str]]:
    """The two tensors of each adapted module, and those that replace one of the model."""
    found: dict[str, dict[str, str]] = {}
    whole = {}
    for name in tensors.names():
        part = _PART.fullmatch(name)
        if part:
            which = part["linear"] or part["embedding"]
            found.setdefault(part["module"].removeprefix(_PREFIX), {})[which] = name
        elif "lora_" in name:
            raise ModelError(f"{tensors.file(name)}: {name} is no tensor of plain LoRA; only that can be merged")
        else:
            whole[name.removeprefix(_PREFIX)] = name
    half = next((module for module, pair in found.items() if len(pair) < 2), None)
    if half is not None:
        raise ModelError(f"{folder}: {half} has one of lora_A and lora_B, not both")
    if not found:
        raise ModelError(f"{folder}: the adapter has no lora_A and lora_B")
    return {module: (pair["A"], pair["B"]) for module, pair in found.items()}, whole


def _pattern(patterns: Mapping[str, Any], module: str, default: float) -> Any:
    """The value of the first pattern that the module's name, or its end behind a dot, matches."""
    for pattern, value in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default


def _patterns(config: Config, key: str) -> dict[str, Any]:
    """An object from patterns of module names to positive numbers; null: none."""
    value = config.get(key) or {}
    numbers = value.values() if isinstance(value, dict) else [None]
    if not all(isinstance(v, (int, float)) and not isinstance(v, bool) and v > 0 for v in numbers):
        raise config.wrong(key, "an object from patterns of module names to numbers > 0")
    return dict(value)
