"""Stable-DiffCoder: Llama's layers (Seed-Coder) with block-causal attention."""

from __future__ import annotations

from . import llama
from .config import Config
from .family import Blocks, Description, Recommended, in_order, special_ids
from .transformer import Architecture

MASK, BLOCK = 5, 4  # in its code; published configs say neither
_PUBLISHED = Recommended("threshold(tau=0.95)", "blockwise", 512, "Stable-DiffCoder's published setting")


class StableDiffcoder:
    """Llama's layers, block-causal, unshifted. Configs say ``model_type: llama``: the architecture counts."""

    name = "stable_diffcoder"
    architectures: tuple[str, ...] = ("StableDiffcoderForCausalLM",)
    harmless = llama.HARMLESS

    def describe(self, config: Config) -> Description:
        """See :class:`unmask.models.family.Family`."""
        attention, mlp = config.flag("attention_bias"), config.flag("mlp_bias")
        arch, context = llama.architecture(config, qkv_bias=attention, o_bias=attention, mlp_bias=mlp)
        ids = special_ids(config, MASK)
        blocks = Blocks(config.integer("block_size", BLOCK), ("block_size",), whole=False)
        return Description(
            self.name,
            arch,
            context,
            **ids,
            shift=False,
            published=_PUBLISHED,
            blocks=blocks,
            orders=in_order(config),
        )

    def names(self, arch: Architecture) -> dict[str, str]:
        """See :class:`unmask.models.family.Family`."""
        return llama.names(arch)
