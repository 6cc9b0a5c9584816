"""What a model family must say of itself: sizes, ids and weight names. One file per family implements it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

from ..core.canvas import NO_MASK
from ..core.errors import ModelError
from .config import Config
from .transformer import Architecture


@dataclass(frozen=True)
class Recommended:
    """How to decode a model where nobody says otherwise.

    Attributes:
        policy, cache: specs, as for :meth:`unmask.Model.generate`.
        gen_length: response length in tokens.
        source: who recommends it: a file, or what a family was published with.
    """

    policy: str
    cache: str
    gen_length: int
    source: str


@dataclass(frozen=True)
class Blocks:
    """That attention is block-causal, and what a family knows of how long the blocks are.

    Attributes:
        length: what the config says, or all of the family have; None: neither.
        keys: of the config that say it.
        named: the length of checkpoints whose name matches a pattern, where no number is in it.
        whole: see :class:`unmask.core.canvas.ModelSpec`.
    """

    length: int | None = None
    keys: tuple[str, ...] = ()
    named: Mapping[str, int] = field(default_factory=dict)
    whole: bool = True


@dataclass(frozen=True)
class Description:
    """A checkpoint as its config describes it; ids as in :class:`unmask.core.canvas.ModelSpec`.

    ``blocks``: attention is block-causal; None: every position attends to all others. ``orders``: it was trained to
    predict in an order as well, see :class:`unmask.core.canvas.ModelSpec`.
    """

    family: str
    arch: Architecture
    context: int
    mask: int
    eos: tuple[int, ...]
    pad: int
    shift: bool
    published: Recommended
    blocks: Blocks | None = None
    orders: bool = False

    def __post_init__(self) -> None:
        """Refuse ids outside the vocabulary, as a :class:`ModelError`."""
        vocab = self.arch.vocab
        mask = () if self.mask == NO_MASK else (self.mask,)
        for name, ids in (("mask", mask), ("end-of-text", self.eos), ("pad", (self.pad,))):
            outside = [i for i in ids if not 0 <= i < vocab]
            if outside:
                raise ModelError(f"{self.family}: the {name} id {outside[0]} of config.json is not in 0 to {vocab - 1}")
        if not self.eos or self.mask in self.eos:
            raise ModelError(f"{self.family}: config.json needs an end-of-text id other than the mask id {self.mask}")


D_co = TypeVar("D_co", covariant=True)


class Family(Protocol[D_co]):
    """Reads the config and names the weights of one family."""

    @property
    def name(self) -> str:
        """For messages."""

    @property
    def architectures(self) -> tuple[str, ...]:
        """The names in a config's ``architectures`` that say so."""

    @property
    def harmless(self) -> frozenset[str]:
        """Keys of its configs that change nothing in what the network computes, beside the usual ones."""

    def describe(self, config: Config) -> D_co:
        """Sizes and ids.

        Raises:
            ModelError: a missing key, or a variant that is not supported.
        """

    def names(self, arch: Architecture) -> dict[str, str]:
        """From our parameter names to the checkpoint's."""


VISIBILITIES = ("full", "block", "order")


def in_order(config: Config) -> bool:
    """Whether a config's ``visibilities``, the kinds of visibility that a model was trained under, have ``order``.

    Raises:
        ModelError: something else stands there.
    """
    told = config.get("visibilities")
    if told is not None and not (isinstance(told, list) and told and all(kind in VISIBILITIES for kind in told)):
        raise config.wrong("visibilities", f"a list of {', '.join(VISIBILITIES)}")
    return "order" in (told or ())


def special_ids(config: Config, mask: int | None = None, eos: int | None = None) -> dict[str, Any]:
    """``mask``, ``eos`` and ``pad`` of a :class:`Description`, from the usual keys (pad: the end of text, if absent).

    ``mask`` and ``eos``: what the family's published checkpoints have, for configs that do not say it.

    Raises:
        ModelError: no mask or no end of text, or not an id.
    """
    ends = config.ids("eos_token_id") or (() if eos is None else (eos,))
    if not ends:
        raise ModelError("config.json has no 'eos_token_id'")
    if mask is None and config.get("mask_token_id") is None:
        raise ModelError(
            f"config.json has no 'mask_token_id', and {config.family} has no id that all of its checkpoints mask with; "
            "add the key with the id of the mask token"
        )
    pad = config.integer("pad_token_id", ends[0], at_least=0)
    return {"mask": config.integer("mask_token_id", mask, at_least=0), "eos": ends, "pad": pad}


def weight_names(
    arch: Architecture,
    outer: Mapping[str, str],
    block: str,
    layer: Mapping[str, str],
    mixture: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """From our parameter names to a checkpoint's.

    Args:
        arch: tied head, biases, norms of queries and keys, experts.
        outer: names outside the blocks, without ``.weight``.
        block: what the name of each block begins with, ``{}`` for its number.
        layer: names inside a block; with ``qkv_proj``, the checkpoint holds queries, keys and values as one tensor.
        mixture: names inside a block of what :attr:`unmask.models.experts.Experts.tensors` names.
    """
    names = {f"{ours}.weight": f"{theirs}.weight" for ours, theirs in outer.items() if ours != "head" or not arch.tied}
    for i in range(arch.layers):
        begin, held, experts = block.format(i), arch.tensors(i), arch.mixed(i)
        if "qkv_proj" in layer:
            held = {"qkv_proj": held.pop("q"), **{name: kinds for name, kinds in held.items() if name not in "kv"}}
        for ours, kinds in held.items():
            for kind in kinds:
                names[f"blocks.{i}.{ours}.{kind}"] = f"{begin}.{layer[ours]}.{kind}"
        for ours in experts.tensors if experts else ():
            for e in range(experts.count if experts and "{}" in ours else 1):
                names[f"blocks.{i}.mixture.{ours.format(e)}"] = f"{begin}.{(mixture or {})[ours].format(e)}"
    return names


def mixture_names(router: str, experts: str, shared: str = "", offset: str = "") -> dict[str, str]:
    """Names for :func:`weight_names`, where each SwiGLU is ``gate_proj``, ``up_proj`` and ``down_proj``.

    Args:
        router: the name of its product.
        experts: what the names of an expert begin with, ``{}`` for its number.
        shared: what those of the shared expert begin with.
        offset: the name of the experts' offsets.
    """
    whose = {"experts.{}": experts, "shared": shared}
    found = {
        f"{ours}.{part}.weight": f"{theirs}.{part}_proj.weight"
        for ours, theirs in whose.items()
        for part in ("gate", "up", "down")
    }
    return found | {"router.weight": f"{router}.weight", "router.offset": offset}


def pick(families: Sequence[Family[D_co]], config: Mapping[str, Any], folder: Path) -> Family[D_co]:
    """The family that the ``architectures`` of a config name; ``model_type`` counts for nothing: several share one.

    Raises:
        ModelError: none of them.
    """
    names = config.get("architectures")
    for family in families:
        if isinstance(names, list) and any(name in family.architectures for name in names):
            return family
    known = ", ".join(a for f in families for a in f.architectures)
    raise ModelError(f"{folder}: architectures {names} are not supported; supported: {known}")


def describe(family: Family[D_co], values: Mapping[str, Any], folder: Path) -> D_co:
    """What a family reads from a config, once nothing is left in it that may change the computation.

    Raises:
        ModelError: a key that is missing, makes no sense or is not known; quantised weights.
    """
    refuse_quantised(values, folder)
    config = Config(values, family.name)
    described = family.describe(config)
    config.refuse_rest(family.harmless)
    return described


def refuse_quantised(config: Mapping[str, Any], folder: Path) -> None:
    """Refuse weights that are packed into few bits.

    Raises:
        ModelError: names the method.
    """
    for key in ("quantization_config", "quantization"):
        given = config.get(key)
        if given:
            method = given.get("quant_method", given.get("mode")) if isinstance(given, Mapping) else given
            raise ModelError(
                f"{folder}: config.json has {key} ({method or 'of no named method'}): quantised weights are not "
                "supported; give the checkpoint that they were made from"
            )
