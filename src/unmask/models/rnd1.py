"""RND1 (Radical Numerics, 2025): Qwen3-MoE without the causal mask, each output predicting the next position."""

from __future__ import annotations

from dataclasses import replace

from . import llama
from .config import Config, words
from .family import Description, Recommended, special_ids
from .transformer import Architecture

MASK = 151669
_DEFAULTS = {  # what its configuration class says where a config does not
    "eos_token_id": 151645,
    "head_dim": 128,
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "max_position_embeddings": 40960,
    "moe_intermediate_size": 768,
    "norm_topk_prob": True,
    "num_attention_heads": 32,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 48,
    "num_key_value_heads": 4,
    "rope_theta": 1000000.0,
    "vocab_size": 151936,
}
_HARMLESS = words("is_causal moe_backend num_diffusion_steps")
_PUBLISHED = Recommended("rnd1(steps=256)", "none", 256, "RND1's published setting")


class Rnd1:
    """Full attention, shifted, experts in every layer. The published configuration class replaces the sizes of every
    config by those of RND1-Base; here the config is believed, and where it is silent, RND1-Base's size counts.
    """

    name = "rnd1"
    architectures: tuple[str, ...] = ("RND1LM",)
    harmless = llama.HARMLESS | llama.MOE_HARMLESS | _HARMLESS

    def describe(self, config: Config) -> Description:
        """See :class:`unmask.models.family.Family`."""
        config = replace(config, given=_DEFAULTS | dict(config.given))
        config.expect({"is_causal": False, "decoder_sparse_step": 1, "mlp_only_layers": []})
        bias, experts = config.flag("attention_bias"), llama.qwen3_experts(config)
        arch, context = llama.architecture(
            config, qkv_bias=bias, o_bias=bias, qk_norm=True, head_dim=128, experts=experts
        )
        return Description(self.name, arch, context, **special_ids(config, MASK), shift=True, published=_PUBLISHED)

    def names(self, arch: Architecture) -> dict[str, str]:
        """See :class:`unmask.models.family.Family`."""
        return llama.names(arch)
