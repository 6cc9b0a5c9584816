"""Llama's layout: the config keys and weight names that Llama, Qwen2, Qwen3, Dream and their kin share."""

from __future__ import annotations

from .config import Config, words
from .experts import Experts
from .family import mixture_names, weight_names
from .rope import rope_of
from .transformer import Architecture

HARMLESS = words("is_llama_config max_window_layers pretraining_tp")
"""Keys without effect once windows are off: where these begin, and how products were split in training."""
OUTER = {"embed": "model.embed_tokens", "norm": "model.norm", "head": "lm_head"}
LAYER = {
    "attn_norm": "input_layernorm",
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "q_norm": "self_attn.q_norm",
    "k_norm": "self_attn.k_norm",
    "o": "self_attn.o_proj",
    "mlp_norm": "post_attention_layernorm",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}
_MIXTURE = mixture_names("mlp.gate", "mlp.experts.{}")
MOE_HARMLESS = words("output_router_logits router_aux_loss_coef")
"""Keys of a mixture of experts that only training reads."""


def architecture(
    config: Config,
    *,
    qkv_bias: bool = False,
    o_bias: bool = False,
    mlp_bias: bool = False,
    qk_norm: bool = False,
    head_dim: int = 0,
    clip: float = 0.0,
    ffn: int | None = None,
    experts: Experts | None = None,
) -> tuple[Architecture, int]:
    """What a config in this layout says, given what is so in all of its family; and the context.

    Raises:
        ModelError: a missing key, or a variant that is not supported.
    """
    config.expect({"hidden_act": "silu", "use_sliding_window": False})
    _refuse_windows(config)
    context = config.integer("max_position_embeddings")
    rope = rope_of(config, context)
    heads, width = config.integer("num_attention_heads"), config.integer("hidden_size")
    size = config.integer("head_dim", head_dim)
    arch = Architecture(
        width=width,
        layers=config.integer("num_hidden_layers"),
        heads=heads,
        kv_heads=config.integer("num_key_value_heads", heads),
        ffn=config.integer("intermediate_size") if ffn is None else ffn,
        vocab=config.integer("vocab_size"),
        theta=rope.theta,
        eps=config.number("rms_norm_eps", 1e-6),
        qkv_bias=qkv_bias,
        tied=config.flag("tie_word_embeddings"),
        head_dim=size,
        rotary_dim=int((size or width // heads) * rope.share),
        qk_norm=qk_norm,
        o_bias=o_bias,
        mlp_bias=mlp_bias,
        scaling=rope.scaling,
        clip=clip,
        experts=experts,
    )
    return arch, context


def names(arch: Architecture) -> dict[str, str]:
    """From our parameter names to the checkpoint's."""
    return weight_names(arch, OUTER, "model.layers.{}", LAYER, _MIXTURE)


def qwen3_experts(config: Config) -> Experts:
    """The mixture of experts as Qwen3-MoE's configs describe it: softmax over all experts, ``norm_topk_prob``.

    Raises:
        ModelError: a missing key, or numbers that do not fit each other.
    """
    layers, step = config.integer("num_hidden_layers"), config.integer("decoder_sparse_step", 1)
    given = config.get("mlp_only_layers") or []
    if not isinstance(given, list) or not all(isinstance(i, int) and 0 <= i < layers for i in given):
        raise config.wrong("mlp_only_layers", f"a list of layers, 0 to {layers - 1}")
    return Experts(
        count=config.integer("num_experts"),
        chosen=config.integer("num_experts_per_tok"),
        width=config.integer("moe_intermediate_size"),
        normalised=config.flag("norm_topk_prob"),
        dense=tuple(i for i in range(layers) if i in given or (i + 1) % step),
    )


def _refuse_windows(config: Config) -> None:
    """Refuse layers that attend to a part of the text; a ``sliding_window`` that is not used is none.

    Raises:
        ModelError: names the key.
    """
    kinds = config.get("layer_types") or []
    if not isinstance(kinds, list) or any(kind != "full_attention" for kind in kinds):
        raise config.wrong("layer_types", "a list of 'full_attention' alone: every layer attends to the whole text")
    if config.get("sliding_window") and "use_sliding_window" not in config:
        raise config.wrong("sliding_window", "null: every layer attends to the whole text")
