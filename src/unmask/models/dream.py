"""Dream (arXiv 2508.15487): Dream-7B Base and Instruct, Dream-Coder, DiffuCoder, and anything in their layout."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .family import Description, flag, number, refuse, size, special_ids, weight_names
from .transformer import Architecture

_OUTER = {"embed": "model.embed_tokens", "norm": "model.norm", "head": "lm_head"}
_LAYER = {
    "attn_norm": "input_layernorm",
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "mlp_norm": "post_attention_layernorm",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}
_SUPPORTED = {"hidden_act": "silu", "rope_scaling": None, "use_sliding_window": False}


class Dream:
    """Qwen2.5's layers without the causal mask; the output at a position predicts the next one (``shift``)."""

    name = "dream"
    architectures: tuple[str, ...] = ("DreamModel",)

    def describe(self, config: Mapping[str, Any]) -> Description:
        """See :class:`unmask.models.family.Family`."""
        refuse(config, self.name, _SUPPORTED)
        heads = size(config, "num_attention_heads")
        arch = Architecture(
            width=size(config, "hidden_size"),
            layers=size(config, "num_hidden_layers"),
            heads=heads,
            kv_heads=size(config, "num_key_value_heads", heads),
            ffn=size(config, "intermediate_size"),
            vocab=size(config, "vocab_size"),
            theta=number(config, "rope_theta", 10000.0),
            eps=number(config, "rms_norm_eps", 1e-6),
            bias=True,
            tied=flag(config, "tie_word_embeddings"),
        )
        return Description(
            family=self.name,
            arch=arch,
            context=size(config, "max_position_embeddings"),
            **special_ids(config),
            shift=True,
        )

    def names(self, arch: Architecture) -> dict[str, str]:
        """See :class:`unmask.models.family.Family`."""
        return weight_names(arch, _OUTER, "model.layers.{}", _LAYER)
