"""DiffusionGemma (Google, 2026): diffusiongemma-26B-A4B-it and anything in its layout; text alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..core.canvas import NO_MASK
from ..core.errors import ModelError
from .config import Config, words
from .diffusion_gemma_network import GemmaArchitecture, Heads
from .experts import Experts
from .family import Blocks, Description, Recommended
from .transformer import Architecture

SLIDING, FULL = "sliding_attention", "full_attention"
_OUTER = {
    "embed.weight": "embed_tokens.weight",
    "norm.weight": "norm.weight",
    "conditioning.norm.weight": "self_conditioning.pre_norm.weight",
    "conditioning.gate.weight": "self_conditioning.gate_proj.weight",
    "conditioning.up.weight": "self_conditioning.up_proj.weight",
    "conditioning.down.weight": "self_conditioning.down_proj.weight",
}
_LAYER = {
    "attn_norm.weight": "input_layernorm.weight",
    "q.weight": "self_attn.q_proj.weight",
    "k.weight": "self_attn.k_proj.weight",
    "v.weight": "self_attn.v_proj.weight",
    "q_norm.weight": "self_attn.q_norm.weight",
    "k_norm.weight": "self_attn.k_norm.weight",
    "o.weight": "self_attn.o_proj.weight",
    "attn_out_norm.weight": "post_attention_layernorm.weight",
    "mlp_norm.weight": "pre_feedforward_layernorm.weight",
    "gate.weight": "mlp.gate_proj.weight",
    "up.weight": "mlp.up_proj.weight",
    "down.weight": "mlp.down_proj.weight",
    "mlp_out_norm.weight": "post_feedforward_layernorm_1.weight",
    "experts_norm.weight": "pre_feedforward_layernorm_2.weight",
    "experts_out_norm.weight": "post_feedforward_layernorm_2.weight",
    "both_norm.weight": "post_feedforward_layernorm.weight",
    "mixture.router.weight": "router.proj.weight",
    "mixture.router.scale": "router.scale",
    "mixture.router.each": "router.per_expert_scale",
    "mixture.experts_in.weight": "experts.gate_up_proj",
    "mixture.experts_out.weight": "experts.down_proj",
    "denoised": "layer_scalar",
}
_SUPPORTED: dict[str, Any] = {
    "hidden_activation": "gelu_pytorch_tanh",
    "attention_bias": False,
    "tie_word_embeddings": True,
    "use_bidirectional_attention": "vision",
    "num_kv_shared_layers": 0,
    "hidden_size_per_layer_input": 0,
    "use_double_wide_mlp": False,
}
_HARMLESS = words(
    """
    attention_k_eq_v boa_token_id boi_token_id dtype enable_moe_block eoa_token_id eoi_token_id image_token_id
    model_type sliding_window_pattern video_token_id vision_config vision_soft_tokens_per_image
    vocab_size_per_layer_input
    """
)
"""Images and sounds, and what transformers writes of Gemma 4 that this family does not have."""
_PUBLISHED = Recommended("renoise", "blockwise", 256, "DiffusionGemma's published setting")


class DiffusionGemma:
    """Uniform noise in canvases behind a causal prefix; two kinds of layers, experts beside a dense part, tied head."""

    name = "diffusion_gemma"
    architectures: tuple[str, ...] = ("DiffusionGemmaForBlockDiffusion",)
    harmless = _HARMLESS

    def describe(self, config: Config) -> Description:
        """See :class:`unmask.models.family.Family`."""
        config.expect({"tie_word_embeddings": True, "use_bidirectional_attention": "vision"})
        text = config.get("text_config")
        if not isinstance(text, Mapping):
            raise config.wrong("text_config", "an object")
        inner = config.inside("text_config", text)
        arch, context = _architecture(inner)
        eos = config.ids("eos_token_id") or inner.ids("eos_token_id")
        pad = inner.integer("pad_token_id", 0, at_least=0)
        block = config.integer("canvas_length", 256)
        inner.refuse_rest(_HARMLESS)
        blocks = Blocks(block, ("canvas_length",))
        return Description(
            self.name, arch, context, NO_MASK, eos, pad, shift=False, published=_published(block), blocks=blocks
        )

    def names(self, arch: Architecture) -> dict[str, str]:
        """See :class:`unmask.models.family.Family`."""
        assert isinstance(arch, GemmaArchitecture)
        decoder = "model.decoder"
        names = {ours: f"{decoder}.{theirs}" for ours, theirs in _OUTER.items()}
        if not arch.tied:
            names["head.weight"] = "lm_head.weight"
        for i, kind in enumerate(arch.kinds):
            layer = {ours: theirs for ours, theirs in _LAYER.items() if kind.window is not None or ours != "v.weight"}
            names |= {f"blocks.{i}.{ours}": f"{decoder}.layers.{i}.{theirs}" for ours, theirs in layer.items()}
            names[f"blocks.{i}.encoded"] = f"model.encoder.language_model.layers.{i}.layer_scalar"
        return names


def _published(block: int) -> Recommended:
    return Recommended(_PUBLISHED.policy, _PUBLISHED.cache, max(_PUBLISHED.gen_length, block), _PUBLISHED.source)


def _architecture(config: Config) -> tuple[GemmaArchitecture, int]:
    config.expect(_SUPPORTED)
    layers, heads = config.integer("num_hidden_layers"), config.integer("num_attention_heads")
    kinds = _kinds(config, layers)
    odd = next((kind for kind in kinds if heads % kind.kv_heads or kind.head_dim % 2), None)
    if odd is not None:
        raise ModelError(
            f"config.json has {heads} heads, and layers with {odd.kv_heads} key/value heads of size {odd.head_dim}; "
            "the heads must be a multiple of these, and the size even"
        )
    count, chosen = config.integer("num_experts"), config.integer("top_k_experts")
    experts = Experts(count, chosen, config.integer("moe_intermediate_size"), gelu=True)
    arch = GemmaArchitecture(
        width=config.integer("hidden_size"),
        layers=layers,
        heads=heads,
        kv_heads=kinds[0].kv_heads,
        ffn=config.integer("intermediate_size"),
        vocab=config.integer("vocab_size"),
        theta=kinds[0].theta,
        eps=config.number("rms_norm_eps", 1e-6),
        tied=True,
        head_dim=kinds[0].head_dim,
        qk_norm=True,
        kinds=kinds,
        experts=experts,
        cap=config.number("final_logit_softcapping", 30.0),
    )
    return arch, config.integer("max_position_embeddings", 131072)


def _kinds(config: Config, layers: int) -> tuple[Heads, ...]:
    """The attention of each layer; of full layers by the older keys, or by ``per_layer_config``."""
    given = config.get("layer_types")
    types = [SLIDING if (i + 1) % 6 else FULL for i in range(layers)] if given is None else given
    if not isinstance(types, list) or len(types) != layers or not set(types) <= {SLIDING, FULL}:
        raise config.wrong("layer_types", f"a list of {layers} times {SLIDING} or {FULL}")
    if types[-1] != FULL:
        raise config.wrong("layer_types", f"a list whose last is {FULL}")
    kv_heads, size = config.integer("num_key_value_heads"), config.integer("head_dim", 256)
    full = (config.integer("num_global_key_value_heads", kv_heads), config.integer("global_head_dim", 512))
    window, own = config.integer("sliding_window", 512), config.get("per_layer_config")
    if own is not None and not isinstance(own, Mapping):
        raise config.wrong("per_layer_config", "an object")
    found = []
    for i, kind in enumerate(types):
        heads, wide = (kv_heads, size) if kind == SLIDING else full
        if own is not None:
            inner = config.inside(f"per_layer_config.{i}", own.get(str(i), {}))
            base = (kv_heads, size)
            heads, wide = inner.integer("num_key_value_heads", base[0]), inner.integer("head_dim", base[1])
        found.append(_heads(config, kind, heads, wide, window))
    return tuple(found)


_ROPE: dict[str, dict[str, Any]] = {
    SLIDING: {"rope_type": "default", "rope_theta": 10000.0},
    FULL: {"rope_type": "proportional", "rope_theta": 1000000.0, "partial_rotary_factor": 0.25},
}


def _heads(config: Config, kind: str, kv_heads: int, size: int, window: int) -> Heads:
    every = config.get("rope_parameters") or _ROPE
    given = every.get(kind) if isinstance(every, Mapping) else None
    if not isinstance(given, Mapping):
        raise config.wrong("rope_parameters", f"an object with {SLIDING} and {FULL}")
    inner = config.inside(f"rope_parameters.{kind}", given)
    inner.expect({"rope_type": _ROPE[kind]["rope_type"], "factor": 1.0})
    theta, share = inner.number("rope_theta", _ROPE[kind]["rope_theta"]), inner.number("partial_rotary_factor", 1.0)
    if share > 1 or (kind == SLIDING and share != 1):
        raise inner.wrong("partial_rotary_factor", "1" if kind == SLIDING else "a number in (0, 1]")
    inner.refuse_rest()
    return Heads(kv_heads, size, theta, int(share * size // 2), window if kind == SLIDING else None)
