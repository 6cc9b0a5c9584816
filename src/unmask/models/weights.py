"""Checkpoints: a Hugging Face folder or hub id, read without executing anything in it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from ..core.canvas import ModelSpec
from ..core.errors import ModelError
from . import gguf_config
from .adapter import CONFIG as ADAPTER_CONFIG
from .adapter import Adapted, Adapter
from .blocks import block_length
from .config import Config
from .denoiser import Denoiser
from .diffusion_gemma import DiffusionGemma
from .diffusion_gemma_denoiser import GemmaDenoiser
from .diffusion_gemma_network import DiffusionGemma as GemmaNetwork
from .dream import Dream
from .family import Description, Family, describe, pick
from .fast_dllm import FastDllm
from .gguf_tensors import Gguf, opened
from .gguf_tensors import names as gguf_names
from .hub import find_folder
from .llada import Llada
from .llada2 import Llada2
from .llada_moe import LladaMoe
from .loading import blank, fill, matched
from .packing import Scheme, fill_packed
from .quantised_files import PackedFiles
from .rnd1 import Rnd1
from .sdar import Sdar, SdarMoe
from .stable_diffcoder import StableDiffcoder
from .tensors import Tensors, first_dtype, named_dtype, read_json, tensors_of
from .transformer import Architecture, Transformer

FAMILIES: tuple[Family[Description], ...] = (
    Llada(),
    Dream(),
    Sdar(),
    SdarMoe(),
    Llada2(),
    FastDllm(),
    StableDiffcoder(),
    LladaMoe(),
    Rnd1(),
    DiffusionGemma(),
)


@dataclass(frozen=True)
class Checkpoint:
    """A folder with ``config.json`` and weights, and the LoRA adapter that is merged into them, if any; or a file of
    llama.cpp, ``gguf``, which holds what a folder does.

    ``name``: the folder or hub id as it was asked for; ``block_length``: what was given for it.
    """

    folder: Path
    config: dict[str, Any] = field(repr=False)
    adapter: Adapter | None = None
    name: str = ""
    block_length: int | None = None
    gguf: Gguf | None = field(default=None, repr=False)

    @staticmethod
    def find(
        path_or_id: str | Path,
        weights: bool = True,
        *,
        revision: str | None = None,
        adapter: str | Path | None = None,
        block_length: int | None = None,
    ) -> Checkpoint:
        """Open a folder, or fetch a hub id such as ``GSAI-ML/LLaDA-8B-Instruct`` into the hub's cache.

        Args:
            path_or_id: the folder or hub id.
            weights: False fetches all but the weights.
            revision: a branch, tag or commit of a hub id.
            adapter: a folder or hub id of a LoRA adapter to merge; None: the one in the model's folder, if there is.
            block_length: of a block-causal model; None: what its config or name says.

        Raises:
            ModelError: neither a folder nor a hub id that can be fetched, no readable ``config.json`` in it, an adapter
                that cannot be merged.
        """
        if str(path_or_id).endswith(gguf_config.ENDING):
            return Checkpoint._of_gguf(path_or_id, revision, adapter, block_length)
        folder = find_folder(path_or_id, weights, revision)
        beside = (folder / ADAPTER_CONFIG).exists()
        if beside and not (folder / "config.json").exists():
            base = read_json(folder / ADAPTER_CONFIG).get("base_model_name_or_path")
            raise ModelError(
                f"{folder} has no config.json: it is an adapter; load the model it was made for ({base}) with "
                f"adapter={str(path_or_id)!r}"
            )
        if beside and adapter is not None:
            raise ModelError(
                f"{folder} has an adapter of its own ({ADAPTER_CONFIG}); adapter={str(adapter)!r} is another"
            )
        config = read_json(folder / "config.json")
        where = folder if beside else None if adapter is None else find_folder(adapter, kind="adapter")
        merged = None if where is None else Adapter.read(where)
        return Checkpoint(folder, config, merged, str(path_or_id), block_length)

    @staticmethod
    def _of_gguf(
        path: str | Path, revision: str | None, adapter: str | Path | None, block_length: int | None
    ) -> Checkpoint:
        """A file of llama.cpp; what a folder says in other files stands in it."""
        for name, given in (("revision", revision), ("adapter", adapter)):
            if given is not None:
                raise ModelError(f"{name} {str(given)!r}: {path} is a GGUF file, which has none")
        file = Path(path).expanduser().absolute()
        gguf = opened(file)
        return Checkpoint(gguf_config.Inside(file), gguf_config.config(gguf), None, str(path), block_length, gguf)

    @cached_property
    def family(self) -> Family[Description]:
        """The family that the config's ``architectures`` names."""
        return pick(FAMILIES, self.config, self.folder)

    @cached_property
    def description(self) -> Description:
        """Sizes and ids of this checkpoint.

        Raises:
            ModelError: a key that is missing, or makes no sense, or changes the computation in a way that is not known;
                quantised weights.
        """
        own: dict[str, Any] = {} if self.stored is None else {"quantization_config": None}
        return describe(self.family, self.config | own, self.folder)

    @cached_property
    def stored(self) -> Scheme | None:
        """How the weights are quantised as they are stored; None: not. Those of GGUF are kept in 8 bits."""
        if self.gguf is not None:
            return Scheme("int8") if self.gguf.quantised else None
        return Scheme.stored(self.config)

    @property
    def control(self) -> tuple[int, ...]:
        """Ids of tokens that no text of a user is, whether the tokenizer's files call them special or not."""
        return (self.description.mask, *self.description.eos)

    @cached_property
    def block(self) -> int | None:
        """The block length; None: full attention.

        Raises:
            ModelError: it is not known, or makes no sense.
        """
        names = dict.fromkeys(Path(name).name for name in (self.name, str(self.folder.resolve())))
        return block_length(self.description, self.block_length, [name for name in names if name])

    @cached_property
    def names(self) -> dict[str, str]:
        """From our parameter names to those of the tensors."""
        return self._names(self.description.arch)

    def _names(self, arch: Architecture) -> dict[str, str]:
        return self.family.names(arch) if self.gguf is None else gguf_names(arch)

    @cached_property
    def tensors(self) -> Tensors:
        """The tensors by their names, the adapter merged.

        Raises:
            ModelError: no weights, a missing shard, a truncated or unreadable file, an adapter of another model.
        """
        if self.gguf is not None:
            return gguf_config.tensors(self.gguf)
        base = tensors_of(self.folder)
        if self.stored is not None:
            base = PackedFiles(base, self.stored.kind)
        if self.adapter is None:
            return base
        known = set(self.names.values()) & set(base.names())
        self.adapter.check(base, known, self.names["embed.weight"] if self.description.arch.tied else None)
        return Adapted(base, self.adapter)

    @cached_property
    def dtype(self) -> torch.dtype:
        """What the weights are stored in: the config's word for it (old key or new), else that of the first weight."""
        return named_dtype(self.config) or first_dtype(self.tensors)

    def load(
        self, network: Transformer, device: torch.device, dtype: torch.dtype, scheme: Scheme | None = None
    ) -> None:
        """Read the weights into a network made on the meta device, quantised by a ``scheme``.

        Raises:
            ModelError: missing or surplus weights, wrong shapes, truncated files.
        """
        found = self.check(network)
        if scheme is None:
            fill(network, found, self.tensors, device, dtype)
        else:
            fill_packed(network, found, self.tensors, device, dtype, scheme)

    def check(self, network: Transformer) -> dict[str, str]:
        """The tensors to read, and the parameter of a network (made on the meta device) that each is for.

        Raises:
            ModelError: missing or surplus weights, wrong shapes, truncated files.
        """
        untied = self._names(replace(network.arch, tied=False))  # a tied head may come along
        return matched(network, self.names, set(untied.values()), self.tensors, self.folder)

    def spec(self, limit: int | None = None, more_eos: tuple[int, ...] = ()) -> ModelSpec:
        """The ids; ``limit`` is the tokenizer's size, ``more_eos`` what it adds to the config's end-of-text ids.

        Raises:
            ModelError: as :attr:`block`.
        """
        d = self.description
        return ModelSpec(
            mask=d.mask,
            eos=self.eos(more_eos),
            pad=d.pad,
            vocab=d.arch.vocab,
            limit=min(limit or d.arch.vocab, d.arch.vocab),
            context=d.context,
            shift=d.shift,
            block=self.block,
            whole=d.blocks is None or d.blocks.whole,
            orders=d.orders,
        )

    def eos(self, more: tuple[int, ...] = ()) -> tuple[int, ...]:
        """The ids that end a text: the config's, those of ``generation_config.json``, and ``more``."""
        d = self.description
        others = self.generation.ids("eos_token_id") + more
        return tuple(dict.fromkeys(d.eos + tuple(i for i in others if 0 <= i < d.arch.vocab and i != d.mask)))

    @cached_property
    def generation(self) -> Config:
        """``generation_config.json``; empty where there is none."""
        file = self.folder / "generation_config.json"
        return Config(read_json(file) if file.exists() else {}, self.family.name, file.name)


def load_denoiser(
    checkpoint: Checkpoint,
    spec: ModelSpec,
    device: torch.device,
    dtype: torch.dtype,
    scheme: Scheme | None = None,
) -> Denoiser:
    """Build the network and read its weights, quantised by a ``scheme``."""
    d = checkpoint.description
    network = blank(d.arch, d.context)
    checkpoint.load(network, device, dtype, scheme)
    network.make_rotary(d.context, device)
    return denoiser_of(network, spec)


def denoiser_of(network: Transformer, spec: ModelSpec) -> Denoiser:
    """What answers asks with a network that has its weights."""
    network.requires_grad_(False)
    return GemmaDenoiser(network, spec) if isinstance(network, GemmaNetwork) else Denoiser(network, spec)


def parameter_count(description: Description, active: bool = False) -> int:
    """Parameters of the network, counted on the meta device; ``active``: those that one position is computed with."""
    network = blank(description.arch)
    return sum(p.numel() for p in network.parameters()) - (network.idle if active else 0)
