"""SDAR (arXiv 2510.06303), dense and with experts, and TraDo, trained from it: Qwen3 with block-causal attention."""

from __future__ import annotations

from . import llama
from .config import Config, words
from .family import Blocks, Description, Recommended, special_ids
from .transformer import Architecture

MASK = 151669
_HARMLESS = words(
    "debug ep_size fuse_cross_entropy micro_forward mlp_only_layers skip_checkpoint use_deepep"
)  # how it was trained
_NAMED = {r"SDAR|TraDo": 4}  # the released ones, where their name has no number
_PUBLISHED = Recommended("sdar(tau=0.85)", "blockwise", 256, "SDAR's published setting, low_confidence_dynamic")


class Sdar:
    """Qwen3's layers, block-causal, unshifted; the configs of released checkpoints do not say how long a block is."""

    name = "sdar"
    architectures: tuple[str, ...] = ("SDARForCausalLM",)
    harmless = llama.HARMLESS | _HARMLESS
    experts = False

    def describe(self, config: Config) -> Description:
        """See :class:`unmask.models.family.Family`."""
        bias = config.flag("attention_bias")
        experts = llama.qwen3_experts(config) if self.experts else None
        arch, context = llama.architecture(
            config, qkv_bias=bias, o_bias=bias, qk_norm=True, head_dim=128, experts=experts
        )
        blocks = Blocks(config.optional("block_size"), ("block_size",), _NAMED)
        return Description(
            self.name, arch, context, **special_ids(config, MASK), shift=False, published=_PUBLISHED, blocks=blocks
        )

    def names(self, arch: Architecture) -> dict[str, str]:
        """See :class:`unmask.models.family.Family`."""
        return llama.names(arch)


class SdarMoe(Sdar):
    """The same with Qwen3-MoE's layers."""

    name = "sdar_moe"
    architectures = ("SDARMoeForCausalLM",)
    harmless = Sdar.harmless | llama.MOE_HARMLESS
    experts = True
