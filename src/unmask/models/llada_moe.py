"""LLaDA-MoE (arXiv 2509.24389): LLaDA-MoE-7B-A1B Base and Instruct, OLMoE's layers without the causal mask."""

from __future__ import annotations

from . import llama
from .config import Config, words
from .experts import Experts
from .family import Description, Recommended, mixture_names, special_ids, weight_names
from .transformer import Architecture

MASK, EOS = 156895, 156892  # of both released; their configs do not say the first
_MIXTURE = mixture_names("mlp.gate", "mlp.experts.{}", "shared_expert", "mlp.expert_bias")
_HARMLESS = words(
    """
    moe_router_score_function norm_topk_prob routed_scaling_factor router_num_group router_topk_group
    """
)
"""Keys that the published code does not read: weights are the softmax of all experts, never normalised or scaled."""
_PUBLISHED = Recommended("vanilla(block_length=32)", "none", 128, "LLaDA-MoE's published setting")


class LladaMoe:
    """Full attention, unshifted. Configs say ``model_type: llada``, as LLaDA's: the architecture counts."""

    name = "llada_moe"
    architectures: tuple[str, ...] = ("LLaDAMoEModelLM", "LLaDAMoEModel", "LLaDAMoeModelLM")
    harmless = llama.HARMLESS | llama.MOE_HARMLESS | _HARMLESS

    def describe(self, config: Config) -> Description:
        """See :class:`unmask.models.family.Family`."""
        bias = config.flag("attention_bias")
        experts = _experts(config)
        arch, context = llama.architecture(
            config,
            qkv_bias=bias,
            o_bias=bias,
            qk_norm=config.flag("qk_layernorm"),
            clip=config.number("clip_qkv", 0.0),
            ffn=config.integer("dense_intermediate_size", None if experts.dense else 0),
            experts=experts,
        )
        ids = special_ids(config, MASK, EOS)
        return Description(self.name, arch, context, **ids, shift=False, published=_PUBLISHED)

    def names(self, arch: Architecture) -> dict[str, str]:
        """See :class:`unmask.models.family.Family`."""
        return weight_names(arch, llama.OUTER, "model.layers.{}", llama.LAYER, _MIXTURE)


def _experts(config: Config) -> Experts:
    layers, frequency = config.integer("num_hidden_layers"), config.get("moe_layer_freq")
    if not isinstance(frequency, list) or len(frequency) != layers or not all(f in (0, 1) for f in frequency):
        raise config.wrong("moe_layer_freq", f"a list of {layers} numbers, 0 (a dense layer) or 1 (experts)")
    return Experts(
        count=config.integer("num_experts"),
        chosen=config.integer("num_experts_per_tok"),
        width=config.integer("expert_intermediate_size"),
        shared=config.integer("shared_expert_intermediate_size", 0, at_least=0),
        offset="weight" if config.flag("moe_router_enable_expert_bias") else "",
        dense=tuple(i for i, sparse in enumerate(frequency) if not sparse),
    )
