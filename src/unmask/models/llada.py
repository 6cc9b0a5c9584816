"""LLaDA (arXiv 2502.09992): LLaDA-8B Base and Instruct, LLaDA-1.5, and anything in their layout."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .family import Description, flag, number, refuse, size, special_ids, weight_names
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
_SUPPORTED = {
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
    "rope_scaling": None,
}


class Llada:
    """Full bidirectional attention, unshifted logits, separate q/k/v without (or with) bias, untied or tied head."""

    name = "llada"
    architectures: tuple[str, ...] = ("LLaDAModelLM",)

    def describe(self, config: Mapping[str, Any]) -> Description:
        """See :class:`unmask.models.family.Family`."""
        refuse(config, self.name, _SUPPORTED)
        width, heads = size(config, "d_model"), size(config, "n_heads")
        ratio = number(config, "mlp_ratio", 4)
        arch = Architecture(
            width=width,
            layers=size(config, "n_layers"),
            heads=heads,
            kv_heads=1 if flag(config, "multi_query_attention") else size(config, "n_kv_heads", heads),
            ffn=size(config, "mlp_hidden_size", int(ratio * width)),
            vocab=size(config, "vocab_size" if config.get("embedding_size") is None else "embedding_size"),
            theta=number(config, "rope_theta", 10000.0),
            eps=number(config, "rms_norm_eps", 1e-5),
            bias=flag(config, "include_qkv_bias"),
            tied=flag(config, "weight_tying"),
        )
        return Description(
            family=self.name,
            arch=arch,
            context=size(config, "max_sequence_length"),
            **special_ids(config),
            shift=False,
        )

    def names(self, arch: Architecture) -> dict[str, str]:
        """See :class:`unmask.models.family.Family`."""
        return weight_names(arch, _OUTER, "model.transformer.blocks.{}", _LAYER)
