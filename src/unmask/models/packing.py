"""Which weights of a network are quantised, and how they get from a checkpoint into it, one tensor at a time."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..core.errors import ModelError
from .computing import described
from .experts import Stack
from .loading import fill
from .quantised import KINDS, Packed, QuantisedStack
from .tensors import Tensors
from .transformer import Linear, Transformer

METHOD, VERSION = "unmask", 1  # of config.json's quantization_config, where the weights are stored as here
_HEAD = "+head"
ACCEPTED = "auto, none, " + ", ".join(f"{kind}{more}" for kind in KINDS for more in ("", _HEAD))


@dataclass(frozen=True)
class Scheme:
    """How weights are quantised: the products of the layers in ``kind``, and with ``head`` that of the head as well.

    The embedding, norms, biases and routers stay as they are.
    """

    kind: str
    head: bool = False

    @staticmethod
    def parse(text: str, own: Scheme | None = None) -> Scheme | None:
        """Read a user's word for it; ``own`` is what ``"auto"`` stands for: how the checkpoint is stored.

        Raises:
            ModelError: a word that is not known.
        """
        known = {f"{kind}{more}": Scheme(kind, bool(more)) for kind in KINDS for more in ("", _HEAD)}
        found = {"auto": own, "none": None, **known}
        if not isinstance(text, str) or text not in found:
            raise ModelError(f"quantize must be one of {ACCEPTED}; got {text!r:.80}")
        return found[text]

    @staticmethod
    def stored(config: Mapping[str, Any]) -> Scheme | None:
        """How the weights of a folder of ``unmask quantize`` are stored; None: they are not quantised, or by others.

        Raises:
            ModelError: by a later version, or in a kind that is not known.
        """
        given = config.get("quantization_config")
        if not isinstance(given, Mapping) or given.get("quant_method") != METHOD:
            return None
        kind, version = given.get("kind"), given.get("version")
        if version != VERSION or kind not in KINDS:
            raise ModelError(
                f"config.json has quantization_config {dict(given)!r:.120}; this version reads version {VERSION} of "
                f"{', '.join(KINDS)}"
            )
        return Scheme(str(kind), bool(given.get("head")))

    @property
    def config(self) -> dict[str, Any]:
        """What :meth:`stored` reads."""
        return {"quant_method": METHOD, "version": VERSION, "kind": self.kind, "head": self.head}

    @property
    def bits(self) -> float:
        """Of a quantised weight, its scales included."""
        return {"int8": 8.0, "int4": 4.5}[self.kind]

    def __str__(self) -> str:
        return self.kind + (_HEAD if self.head else "")

    def chosen(self, network: Transformer) -> dict[str, Linear | Stack]:
        """The products that are quantised, those of experts among them, by the names of their modules."""
        return {
            name: module
            for name, module in network.named_modules()
            if isinstance(module, (Linear, Stack)) and (self.head or name != "head")
        }


def products(scheme: Scheme | None, device: torch.device, dtype: str) -> str:
    """What computes the products of the layers, in words."""
    if scheme is None:
        return dtype
    return f"{scheme}: {described(scheme.kind, device)}"


def packed(tensors: Tensors, name: str, kind: str) -> Packed:
    """A weight in few bits: as it is stored, where that is the kind wanted; else rounded.

    Raises:
        ModelError: it cannot be read, or not be divided into groups.
    """
    stored = getattr(tensors, "packed", None)
    found: Packed | None = None if stored is None else stored(name)
    if found is not None and found.name == kind:
        return found
    try:
        return KINDS[kind].of(tensors.read(name).flatten(0, -2))  # experts may stand in a dimension of their own
    except ModelError as error:
        raise ModelError(f"{tensors.file(name)}: {name}: {error}") from None


def fill_packed(
    network: Transformer,
    found: Mapping[str, str],
    tensors: Tensors,
    device: torch.device,
    dtype: torch.dtype,
    scheme: Scheme,
) -> None:
    """As :func:`unmask.models.loading.fill`, weights quantised as they are read: at no time is there more of them in
    floating point numbers than one tensor.

    Args:
        network, found, tensors, device, dtype: see there; ``dtype`` is that of everything that is not quantised.
        scheme: how.

    Raises:
        ModelError: as there, or a weight that cannot be divided into groups.
    """
    layers, parts = scheme.chosen(network), network.parts()
    owner = {part: name for name in layers for part in (f"{name}.weight", *parts[f"{name}.weight"])}
    rest, pieces = dict[str, str](), dict[str, dict[str, Packed]]()
    made = dict[str, Packed]()
    for theirs, ours in found.items():
        if ours not in owner:
            rest[theirs] = ours
            continue
        name = owner[ours]
        held = pieces.setdefault(name, {})
        held[ours] = packed(tensors, theirs, scheme.kind)
        wanted = [f"{name}.weight"] if f"{name}.weight" in held else list(parts[f"{name}.weight"])
        if len(held) == len(wanted):
            made[name] = _joined([held[part] for part in wanted])
            del pieces[name]
    for module in layers.values():
        module.weight = None  # type: ignore[assignment]
    fill(network, rest, tensors, device, dtype)
    place(network, made, device, dtype)


def place(network: Transformer, made: dict[str, Packed], device: torch.device, dtype: torch.dtype) -> None:
    """Put products with these weights in the place of others, whose biases stay; empties ``made`` as it goes."""
    while made:
        name, weight = made.popitem()
        before, (path, _, last) = network.get_submodule(name), name.rpartition(".")
        if isinstance(before, Stack):
            layer: nn.Module = QuantisedStack(before.count, weight, dtype, device)
        else:
            layer = weight.layer(before.bias, dtype, device)  # type: ignore[arg-type]
        setattr(network.get_submodule(path), last, layer)


def _joined(parts: Collection[Packed]) -> Packed:
    every: Any = list(parts)
    whole: Packed = every[0] if len(every) == 1 else type(every[0]).joined(every)
    return whole
