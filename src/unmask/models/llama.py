"""Llama's layout: the config keys and weight names that Llama, Qwen2, Qwen3, Dream and their kin share."""

from __future__ import annotations

from .config import Config, words
from .family import weight_names
from .rope import rope_of
from .transformer import Architecture

HARMLESS = words("is_llama_config max_window_layers pretraining_tp")
"""Keys without effect once windows are off: where these begin, and how products were split in training."""
_OUTER = {"embed": "model.embed_tokens", "norm": "model.norm", "head": "lm_head"}
_LAYER = {
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


def architecture(
    config: Config,
    *,
    qkv_bias: bool = False,
    o_bias: bool = False,
    mlp_bias: bool = False,
    qk_norm: bool = False,
    head_dim: int = 0,
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
        ffn=config.integer("intermediate_size"),
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
    )
    return arch, context


def names(arch: Architecture) -> dict[str, str]:
    """From our parameter names to the checkpoint's."""
    return weight_names(arch, _OUTER, "model.layers.{}", _LAYER)


def _refuse_windows(config: Config) -> None:
    """Refuse layers that attend to a part of the text; a ``sliding_window`` that is not used is none.

    Raises:
        ModelError: names the key.
    """
    kinds = config.get("layer_types") or []
    if not isinstance(kinds, list) or any(kind != "full_attention" for kind in kinds):
        raise config.wrong("layer_types", "a list of 'full_attention' alone: every layer attends to the whole text")
    if config.get("sliding_window") is not None and "use_sliding_window" not in config:
        raise config.wrong("sliding_window", "null: every layer attends to the whole text")
