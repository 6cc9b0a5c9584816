"""LLaDA (arXiv 2502.09992): LLaDA-8B Base and Instruct, LLaDA-1.5, and anything in their layout."""

from __future__ import annotations

from typing import Any

from .config import Config, words
from .family import Description, Recommended, in_order, special_ids, weight_names
from .rope import rope_of
from .transformer import Architecture

_OUTER = {"embed": "model.transformer.wte", "norm": "model.transformer.ln_f", "head": "model.transformer.ff_out"}
_LAYER = {
    "attn_norm": "attn_norm",
    "q": "q_proj",
    "k": "k_proj",
    "v": "v_proj",
    "o": "attn_out",
    "mlp_norm": "ff_norm",
    "gate": "ff_proj",
    "up": "up_proj",
    "down": "ff_out",
}
_SUPPORTED: dict[str, Any] = {
    "block_type": "llama",
    "layer_norm_type": "rms",
    "activation_type": "silu",
    "rope": True,
    "alibi": False,
    "attention_layer_norm": False,
    "include_bias": False,
    "input_emb_norm": False,
    "scale_logits": False,
    "bias_for_layer_norm": False,
    "layer_norm_with_affine": True,
    "block_group_size": 1,
    "clip_qkv": None,
}
_HARMLESS = words(
    """
    alibi_bias_max attention_layer_norm_with_affine flash_attention init_cutoff_factor init_device init_fn init_std
    n_kv_heads precision rope_full_precision tie_word_embeddings vocab_size
    """
)
"""What other keys decide (the size of the embedding, key/value heads, the tied head), how weights begin in training,
and number formats: rotary embeddings have full precision here whatever ``rope_full_precision`` says.
"""
_PUBLISHED = Recommended("slowfast(preset=reference)", "none", 256, "SlowFast's published setting for LLaDA")


class Llada:
    """Full bidirectional attention, unshifted logits, separate q/k/v without (or with) bias, untied or tied head."""

    name = "llada"
    architectures: tuple[str, ...] = ("LLaDAModelLM",)
    harmless = _HARMLESS

    def describe(self, config: Config) -> Description:
        """See :class:`unmask.models.family.Family`."""
        config.expect(_SUPPORTED)
        width, heads = config.integer("d_model"), config.integer("n_heads")
        ratio = config.number("mlp_ratio", 4)
        context = config.integer("max_sequence_length")
        rope = rope_of(config, context)
        arch = Architecture(
            width=width,
            layers=config.integer("n_layers"),
            heads=heads,
            kv_heads=1 if config.flag("multi_query_attention") else config.integer("n_kv_heads", heads),
            ffn=config.integer("mlp_hidden_size", int(ratio * width)),
            vocab=config.integer("vocab_size" if config.get("embedding_size") is None else "embedding_size"),
            theta=rope.theta,
            eps=config.number("rms_norm_eps", 1e-5),
            qkv_bias=config.flag("include_qkv_bias"),
            tied=config.flag("weight_tying"),
            rotary_dim=int(width // heads * rope.share),
            scaling=rope.scaling,
        )
        ids, orders = special_ids(config), in_order(config)
        return Description(self.name, arch, context, **ids, shift=False, published=_PUBLISHED, orders=orders)

    def names(self, arch: Architecture) -> dict[str, str]:
        """See :class:`unmask.models.family.Family`."""
        return weight_names(arch, _OUTER, "model.transformer.blocks.{}", _LAYER)
