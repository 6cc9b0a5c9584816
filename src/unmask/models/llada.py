"""LLaDA (arXiv 2502.09992): LLaDA-8B Base and Instruct, LLaDA-1.5, and anything in their layout."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..core.errors import ModelError
from .family import Description, id_list, refuse, required
from .transformer import Architecture

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
}


class Llada:
    """Full bidirectional attention, unshifted logits, separate q/k/v without (or with) bias, untied or tied head."""

    name = "llada"
    architectures: tuple[str, ...] = ("LLaDAModelLM",)

    def describe(self, config: Mapping[str, Any]) -> Description:
        """See :class:`unmask.models.family.Family`."""
        refuse(config, self.name, _SUPPORTED)
        width, heads = required(config, "d_model"), required(config, "n_heads")
        if width % heads:
            raise ModelError(f"llada: d_model = {width} is not a multiple of n_heads = {heads}")
        kv_heads = 1 if config.get("multi_query_attention") else config.get("n_kv_heads") or heads
        ffn = config.get("mlp_hidden_size") or int(config.get("mlp_ratio", 4) * width)
        vocab = config.get("embedding_size") or required(config, "vocab_size")
        arch = Architecture(
            width=width,
            layers=required(config, "n_layers"),
            heads=heads,
            kv_heads=kv_heads,
            ffn=ffn,
            vocab=vocab,
            theta=float(config.get("rope_theta") or 10000.0),
            eps=float(config.get("rms_norm_eps") or 1e-5),
            bias=bool(config.get("include_qkv_bias")),
            tied=bool(config.get("weight_tying")),
        )
        eos = id_list(required(config, "eos_token_id"))
        pad = config.get("pad_token_id")
        return Description(
            self.name,
            arch,
            required(config, "max_sequence_length"),
            required(config, "mask_token_id"),
            eos,
            eos[0] if pad is None else pad,
            shift=False,
        )

    def names(self, arch: Architecture) -> dict[str, str]:
        """See :class:`unmask.models.family.Family`."""
        root = "model.transformer"
        names = {"embed.weight": f"{root}.wte.weight", "norm.weight": f"{root}.ln_f.weight"}
        if not arch.tied:
            names["head.weight"] = f"{root}.ff_out.weight"
        for i in range(arch.layers):
            for ours, theirs in _LAYER.items():
                names[f"blocks.{i}.{ours}.weight"] = f"{root}.blocks.{i}.{theirs}.weight"
                if arch.bias and ours in "qkv":
                    names[f"blocks.{i}.{ours}.bias"] = f"{root}.blocks.{i}.{theirs}.bias"
        return names
