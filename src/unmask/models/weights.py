"""Checkpoints: a Hugging Face folder or hub id, read without executing anything in it."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from ..core.canvas import ModelSpec
from ..core.errors import ModelError
from .denoiser import Denoiser
from .dream import Dream
from .family import Description, Family, id_list
from .llada import Llada
from .transformer import Transformer

FAMILIES: tuple[Family, ...] = (Llada(), Dream())
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}
_HUB_ID = re.compile(r"[\w.\-]+/[\w.\-]+")
_UNUSED = re.compile(r"rotary|inv_freq")  # buffers that some tools write; made anew here


@dataclass(frozen=True)
class Checkpoint:
    """A folder with ``config.json`` and safetensors weights, single or sharded."""

    folder: Path
    config: dict[str, Any] = field(repr=False)

    @staticmethod
    def find(path_or_id: str | Path, weights: bool = True) -> Checkpoint:
        """Open a folder, or fetch a hub id such as ``GSAI-ML/LLaDA-8B-Instruct`` into the hub's cache.

        ``weights=False`` fetches all but the weights.

        Raises:
            ModelError: neither a folder nor a hub id that can be fetched, or no readable ``config.json`` in it.
        """
        if not isinstance(path_or_id, (str, Path)) or not str(path_or_id):
            raise ModelError(
                f"no model at {path_or_id!r}: expected a folder or a hub id like GSAI-ML/LLaDA-8B-Instruct"
            )
        folder = Path(path_or_id).expanduser()
        if not folder.is_dir():
            if folder.exists() or not _HUB_ID.fullmatch(str(path_or_id)):
                raise ModelError(
                    f"no model at {str(path_or_id)!r}: expected a folder with config.json and *.safetensors, "
                    "or a hub id like GSAI-ML/LLaDA-8B-Instruct"
                )
            folder = _download(str(path_or_id), weights)
        return Checkpoint(folder, read_json(folder / "config.json"))

    @cached_property
    def family(self) -> Family:
        """The family that the config's ``architectures`` names."""
        names = self.config.get("architectures")
        for family in FAMILIES:
            if isinstance(names, list) and any(name in family.architectures for name in names):
                return family
        known = ", ".join(a for f in FAMILIES for a in f.architectures)
        raise ModelError(f"{self.folder}: architectures {names} are not supported; supported: {known}")

    @cached_property
    def description(self) -> Description:
        """Sizes and ids of this checkpoint."""
        return self.family.describe(self.config)

    @cached_property
    def dtype(self) -> torch.dtype:
        """What the weights are stored in: the config's word for it (old key or new), else that of the first weight."""
        for key in ("torch_dtype", "dtype"):
            named = str(self.config.get(key)).removeprefix("torch.")
            if named in DTYPES:
                return DTYPES[named]
        for name, file in self.files.items():
            with open_weights(file) as weights:
                return _tensor(weights, name, file).dtype
        return torch.float32

    @cached_property
    def files(self) -> dict[str, Path]:
        """Which file holds each weight.

        Raises:
            ModelError: no weights, a missing shard, a truncated or unreadable file.
        """
        single, index = self.folder / "model.safetensors", self.folder / "model.safetensors.index.json"
        if single.exists():
            with open_weights(single) as weights:
                return dict.fromkeys(weights.keys(), single)
        if not index.exists():
            raise ModelError(f"{self.folder} has no model.safetensors and no model.safetensors.index.json")
        shards = read_json(index).get("weight_map")
        if not isinstance(shards, dict) or not shards or not all(isinstance(s, str) for s in shards.values()):
            raise ModelError(f"{index} has no 'weight_map' from weight names to file names")
        missing = sorted({s for s in shards.values() if not (self.folder / s).exists()})
        if missing:
            raise ModelError(f"{self.folder}: shards missing: {', '.join(missing)}")
        return {name: self.folder / shard for name, shard in shards.items()}

    def load(self, network: Transformer, device: torch.device, dtype: torch.dtype) -> None:
        """Read the weights into a network made on the meta device, one tensor at a time.

        Each is copied out of the file, so that a file overwritten later does not change (or crash) a loaded model.

        Raises:
            ModelError: missing or surplus weights, wrong shapes, truncated files.
        """
        names = self.family.names(network.arch)
        absent = [theirs for theirs in names.values() if theirs not in self.files]
        if absent:
            raise ModelError(f"{self.folder}: weights missing: {_some(absent)}")
        known = set(self.family.names(replace(network.arch, tied=False)).values())  # a tied head may come along
        inside = {name.split(".")[0] for name in known}
        surplus = [n for n in self.files if n.split(".")[0] in inside and n not in known and not _UNUSED.search(n)]
        if surplus:
            raise ModelError(f"{self.folder}: weights that config.json does not account for: {_some(surplus)}")
        wanted = network.shapes()
        by_file: dict[Path, list[tuple[str, str]]] = defaultdict(list)
        for ours, theirs in names.items():
            by_file[self.files[theirs]].append((ours, theirs))
        state: dict[str, torch.Tensor] = {}
        for file, pairs in by_file.items():
            with open_weights(file) as weights:
                for ours, theirs in pairs:
                    tensor = _tensor(weights, theirs, file)
                    if tuple(tensor.shape) != wanted[ours]:
                        raise ModelError(
                            f"{file.name}: {theirs} has shape {list(tensor.shape)}, "
                            f"config.json implies {list(wanted[ours])}"
                        )
                    state[ours] = tensor.to(device=device, dtype=dtype, copy=True)
        network.assign(state)

    def spec(self, limit: int | None = None, more_eos: tuple[int, ...] = ()) -> ModelSpec:
        """The ids; ``limit`` is the tokenizer's size, ``more_eos`` what it adds to the config's end-of-text ids."""
        d = self.description
        extra = self.folder / "generation_config.json"
        more = id_list(read_json(extra), "eos_token_id", extra.name) if extra.exists() else ()
        more = tuple(i for i in more + more_eos if 0 <= i < d.arch.vocab and i != d.mask)
        return ModelSpec(
            mask=d.mask,
            eos=tuple(dict.fromkeys(d.eos + more)),
            pad=d.pad,
            vocab=d.arch.vocab,
            limit=min(limit or d.arch.vocab, d.arch.vocab),
            context=d.context,
            shift=d.shift,
        )


def load_denoiser(checkpoint: Checkpoint, spec: ModelSpec, device: torch.device, dtype: torch.dtype) -> Denoiser:
    """Build the network and read its weights."""
    d = checkpoint.description
    with torch.device("meta"):
        network = Transformer(d.arch, d.context)
    checkpoint.load(network, device, dtype)
    network.make_rotary(d.context, device)
    return Denoiser(network.requires_grad_(False), spec)


def parameter_count(description: Description) -> int:
    """Parameters of the network, counted on the meta device."""
    with torch.device("meta"):
        return sum(p.numel() for p in Transformer(description.arch, 1).parameters())


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file, or a ModelError that names it."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{path.parent} has no {path.name}") from None
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {error}") from None
    if not isinstance(value, dict):
        raise ModelError(f"{path} does not hold a JSON object")
    return value


def open_weights(path: Path) -> Any:
    """A safetensors file, or a ModelError that names it and says what is wrong."""
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path} is not a complete safetensors file (truncated download?): {error}") from None


def _tensor(weights: Any, name: str, file: Path) -> torch.Tensor:
    try:
        tensor: torch.Tensor = weights.get_tensor(name)
    except SafetensorError as error:
        raise ModelError(f"{file}: {name} cannot be read: {error}") from None
    if tensor.dtype not in DTYPES.values():
        raise ModelError(f"{file}: {name} is {tensor.dtype}; supported are {', '.join(DTYPES)}")
    return tensor


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _download(repo: str, weights: bool) -> Path:
    from huggingface_hub import snapshot_download

    wanted = ["*.json", "*.txt", "*.jinja", "*.model", *(["*.safetensors"] if weights else [])]
    try:
        return Path(snapshot_download(repo, allow_patterns=wanted))
    except Exception as error:  # the hub's own errors, and those of whichever HTTP library it uses
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(f"{repo!r} is no local folder and could not be fetched from the hub: {reason}") from None
