"""LLaDA2.0 (arXiv 2512.15745) and LLaDA2.1 (arXiv 2602.08676), mini and flash: Ling 2.0's layers, block-causal."""

from __future__ import annotations

from .config import Config, words
from .experts import Experts
from .family import Blocks, Description, Recommended, mixture_names, special_ids, weight_names
from .rope import rope_of
from .transformer import Architecture

MASK, EOS, BLOCK = 156895, 156892, 32  # of all released; their configs say none of them
_OUTER = {"embed": "model.word_embeddings", "norm": "model.norm", "head": "lm_head"}
_LAYER = {
    "attn_norm": "input_layernorm",
    "qkv_proj": "attention.query_key_value",
    "q_norm": "attention.query_layernorm",
    "k_norm": "attention.key_layernorm",
    "o": "attention.dense",
    "mlp_norm": "post_attention_layernorm",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}
_MIXTURE = mixture_names("mlp.gate", "mlp.experts.{}", "mlp.shared_experts", "mlp.gate.expert_bias")
_HARMLESS = words(
    """
    max_window_layers moe_router_enable_expert_bias norm_head norm_softmax norm_topk_prob output_dropout
    output_router_logits rotary_dim router_dtype score_function sliding_window use_rmsnorm
    """
)
"""Keys that the published code does not read: it always adds the bias, normalises the weights, scores by sigmoid in
float32, rotates ``head_dim * partial_rotary_factor`` dimensions and attends without a window.
"""
_PUBLISHED = Recommended("threshold(tau=0.95)", "blockwise", 512, "LLaDA2's published setting")


class Llada2:
    """Block-causal, unshifted; group-limited routing by sigmoids with offsets, shared experts, dense first layers."""

    name = "llada2"
    architectures: tuple[str, ...] = ("LLaDA2MoeModelLM",)
    harmless = _HARMLESS

    def describe(self, config: Config) -> Description:
        """See :class:`unmask.models.family.Family`."""
        config.expect({"hidden_act": "silu", "use_sliding_window": False})
        context = config.integer("max_position_embeddings")
        rope = rope_of(config, context, share=0.5)
        heads, width, layers = (config.integer(k) for k in ("num_attention_heads", "hidden_size", "num_hidden_layers"))
        size = config.integer("head_dim", 0, at_least=0)
        arch = Architecture(
            width=width,
            layers=layers,
            heads=heads,
            kv_heads=config.integer("num_key_value_heads", heads),
            ffn=config.integer("intermediate_size"),
            vocab=config.integer("vocab_size"),
            theta=rope.theta,
            eps=config.number("rms_norm_eps", 1e-5),
            qkv_bias=config.flag("use_qkv_bias"),
            o_bias=config.flag("use_bias"),
            tied=config.flag("tie_word_embeddings"),
            head_dim=size,
            rotary_dim=int((size or width // heads) * rope.share),
            qk_norm=config.flag("use_qk_norm", True),
            scaling=rope.scaling,
            experts=_experts(config, layers),
        )
        ids, blocks = special_ids(config, MASK, EOS), Blocks(BLOCK)
        return Description(self.name, arch, context, **ids, shift=False, published=_PUBLISHED, blocks=blocks)

    def names(self, arch: Architecture) -> dict[str, str]:
        """See :class:`unmask.models.family.Family`."""
        return weight_names(arch, _OUTER, "model.layers.{}", _LAYER, _MIXTURE)


def _experts(config: Config, layers: int) -> Experts:
    chosen, width = config.integer("num_experts_per_tok"), config.integer("moe_intermediate_size")
    return Experts(
        count=config.integer("num_experts"),
        chosen=chosen,
        width=width,
        shared=width * config.integer("num_shared_experts", 0, at_least=0),
        sigmoid=True,
        normalised=chosen > 1,
        scale=config.number("routed_scaling_factor", 2.5),
        groups=config.integer("n_group", 8),
        kept=config.integer("topk_group", 4),
        offset="choice",
        dense=tuple(range(min(layers, config.integer("first_k_dense_replace", 0, at_least=0)))),
    )
