"""LLaDA (arXiv 2502.09992): LLaDA-8B Base and Instruct, LLaDA-1.5, and anything in their layout."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..core.errors import ModelError
from .family import Description, flag, id_list, number, refuse, size
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
        eos = id_list(config, "eos_token_id")
        if not eos:
            raise ModelError("config.json has no 'eos_token_id'")
        return Description(
            family=self.name,
            arch=arch,
            context=size(config, "max_sequence_length"),
            mask=size(config, "mask_token_id", at_least=0),
            eos=eos,
            pad=size(config, "pad_token_id", eos[0], at_least=0),
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
