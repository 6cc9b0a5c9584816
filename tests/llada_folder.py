"""Small checkpoints written as LLaDA's are published, and LLaDA's forward written down once more, plainly."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

SPECIAL = (
    "<|mdm_mask|>",
    "<|endoftext|>",
    "<|eot_id|>",
    "<|startoftext|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
)
MASK, EOS, EOT, BOS, HEAD, TAIL = range(256, 262)  # behind the 256 bytes
TOKENS, VOCAB, CONTEXT = 262, 288, 128
TEMPLATE = (
    "{% for m in messages %}{{ ('<|startoftext|>' if loop.first else '') + '<|start_header_id|>' + m['role'] "
    "+ '<|end_header_id|>\n\n' + m['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
CONFIG: dict[str, Any] = {
    "activation_type": "silu",
    "alibi": False,
    "alibi_bias_max": 8.0,
    "architectures": ["LLaDAModelLM"],
    "attention_dropout": 0.0,
    "attention_layer_norm": False,
    "attention_layer_norm_with_affine": True,
    "auto_map": {"AutoConfig": "configuration_llada.LLaDAConfig", "AutoModel": "modeling_llada.LLaDAModelLM"},
    "bias_for_layer_norm": False,
    "block_group_size": 1,
    "block_type": "llama",
    "d_model": 32,
    "embedding_dropout": 0.0,
    "embedding_size": VOCAB,
    "eos_token_id": EOS,
    "flash_attention": False,
    "include_bias": False,
    "include_qkv_bias": False,
    "init_cutoff_factor": None,
    "init_device": "meta",
    "init_fn": "mitchell",
    "init_std": 0.02,
    "input_emb_norm": False,
    "layer_norm_type": "rms",
    "layer_norm_with_affine": True,
    "mask_token_id": MASK,
    "max_sequence_length": CONTEXT,
    "mlp_hidden_size": 48,
    "mlp_ratio": 4,
    "model_type": "llada",
    "multi_query_attention": None,
    "n_heads": 4,
    "n_kv_heads": 4,
    "n_layers": 2,
    "pad_token_id": EOS,
    "precision": "amp_bf16",
    "residual_dropout": 0.0,
    "rms_norm_eps": 1e-05,
    "rope": True,
    "rope_full_precision": True,
    "rope_theta": 10000.0,
    "scale_logits": False,
    "torch_dtype": "float32",
    "transformers_version": "4.46.3",
    "use_cache": False,
    "vocab_size": VOCAB,
    "weight_tying": False,
}
LLADA_8B = CONFIG | {
    "d_model": 4096,
    "embedding_size": 126464,
    "eos_token_id": 126081,
    "mask_token_id": 126336,
    "max_sequence_length": 4096,
    "mlp_hidden_size": 12288,
    "n_heads": 32,
    "n_kv_heads": 32,
    "n_layers": 32,
    "pad_token_id": 126081,
    "rope_theta": 500000.0,
    "torch_dtype": "bfloat16",
    "vocab_size": 126464,
}


def shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Every weight of a LLaDA checkpoint by its published name."""
    d, ffn, root = config["d_model"], config["mlp_hidden_size"], "model.transformer"
    kv = d // config["n_heads"] * config["n_kv_heads"]
    found = {f"{root}.wte.weight": (config["embedding_size"], d), f"{root}.ln_f.weight": (d,)}
    if not config["weight_tying"]:
        found[f"{root}.ff_out.weight"] = (config["embedding_size"], d)
    for i in range(config["n_layers"]):
        layer = {"q_proj": (d, d), "k_proj": (kv, d), "v_proj": (kv, d), "attn_out": (d, d)}
        layer |= {"ff_proj": (ffn, d), "up_proj": (ffn, d), "ff_out": (d, ffn), "attn_norm": (d,), "ff_norm": (d,)}
        found |= {f"{root}.blocks.{i}.{name}.weight": shape for name, shape in layer.items()}
        if config["include_qkv_bias"]:
            found |= {f"{root}.blocks.{i}.{n}.bias": (layer[n][0],) for n in ("q_proj", "k_proj", "v_proj")}
    return found


def weights(config: dict[str, Any], dtype: torch.dtype = torch.float32, seed: int = 0) -> dict[str, Tensor]:
    """Random weights, strong enough that every part of the network shows in the logits."""
    draw = torch.Generator().manual_seed(seed)
    made = {}
    for name, shape in shapes(config).items():
        noise = torch.randn(shape, generator=draw)
        norm = "norm" in name or "ln_f" in name
        scale = 0.2 if norm or "bias" in name else 1.0 if "wte" in name else 1.5 / shape[-1] ** 0.5
        made[name] = (noise * scale + norm).to(dtype)
    return made


def write_tokenizer(folder: Path, template: str | None = TEMPLATE) -> None:
    """One token per byte, and LLaDA's control tokens, as ``tokenizer.json`` and ``tokenizer_config.json``."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|endoftext|>",
        "bos_token": "<|startoftext|>",
    }
    if template:
        config["chat_template"] = template
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def write(
    folder: Path,
    change: dict[str, Any] | None = None,
    *,
    tensors: dict[str, Tensor] | None = None,
    shards: int = 0,
    tokenizer: bool = True,
    template: str | None = TEMPLATE,
    without: tuple[str, ...] = (),
) -> Path:
    """A checkpoint folder; ``change`` overrides and ``without`` removes config keys, ``shards`` splits the weights."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {k: v for k, v in (CONFIG | (change or {})).items() if k not in without}
    (folder / "config.json").write_text(json.dumps(config))
    tensors = weights(config) if tensors is None else tensors
    if shards:
        parts = [f"model-{i + 1:05}-of-{shards:05}.safetensors" for i in range(shards)]
        placed = {name: parts[at % shards] for at, name in enumerate(tensors)}
        for part in parts:
            save_file({n: tensors[n] for n in tensors if placed[n] == part}, folder / part, {"format": "pt"})
        size = sum(t.nbytes for t in tensors.values())
        index = {"metadata": {"total_size": size}, "weight_map": placed}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    else:
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    if tokenizer:
        write_tokenizer(folder, template)
    return folder


def stubborn(config: dict[str, Any], wishes: dict[int, float]) -> dict[str, Tensor]:
    """Weights of a model that, whatever it sees, wants the ids of ``wishes`` as strongly as they say (logits)."""
    made = {n: torch.ones(s) if "norm" in n or "ln_f" in n else torch.zeros(s) for n, s in shapes(config).items()}
    made["model.transformer.wte.weight"] += 1.0
    for token, strength in wishes.items():
        made["model.transformer.ff_out.weight"][token] = strength / config["d_model"]
    return made


def reference_logits(config: dict[str, Any], tensors: dict[str, Tensor], ids: list[int]) -> Tensor:
    """``[T, V]`` float64 logits of LLaDA's network, one token, one head at a time where that is clearer."""
    w = {name.removeprefix("model.transformer."): t.double() for name, t in tensors.items()}
    heads, kv_heads = config["n_heads"], config["n_kv_heads"]
    size = config["d_model"] // heads

    def norm(x: Tensor, weight: Tensor) -> Tensor:
        return weight * x / (x.pow(2).mean(-1, keepdim=True) + config["rms_norm_eps"]).sqrt()

    def turn(x: Tensor) -> Tensor:
        """Rotate the pairs (i, i + size / 2) of ``[T, size]`` by position * theta ** (-2 i / size)."""
        out = x.clone()
        for position in range(len(x)):
            for i in range(size // 2):
                angle = position * config["rope_theta"] ** (-2 * i / size)
                a, b = x[position, i], x[position, i + size // 2]
                out[position, i] = a * math.cos(angle) - b * math.sin(angle)
                out[position, i + size // 2] = b * math.cos(angle) + a * math.sin(angle)
        return out

    hidden = w["wte.weight"][ids]
    for layer in range(config["n_layers"]):
        part = {n.removeprefix(f"blocks.{layer}."): t for n, t in w.items() if n.startswith(f"blocks.{layer}.")}
        x = norm(hidden, part["attn_norm.weight"])
        q, k, v = (
            x @ part[f"{n}_proj.weight"].T + part.get(f"{n}_proj.bias", torch.zeros((), dtype=torch.float64))
            for n in "qkv"
        )
        outputs = []
        for head in range(heads):
            shared = head // (heads // kv_heads)
            query = turn(q[:, head * size : (head + 1) * size])
            key = turn(k[:, shared * size : (shared + 1) * size])
            attention = (query @ key.T / math.sqrt(size)).softmax(-1)
            outputs.append(attention @ v[:, shared * size : (shared + 1) * size])
        hidden = hidden + torch.cat(outputs, 1) @ part["attn_out.weight"].T
        x = norm(hidden, part["ff_norm.weight"])
        gate, up = x @ part["ff_proj.weight"].T, x @ part["up_proj.weight"].T
        hidden = hidden + (gate / (1 + (-gate).exp()) * up) @ part["ff_out.weight"].T
    return norm(hidden, w["ln_f.weight"]) @ w.get("ff_out.weight", w["wte.weight"]).T
