"""A random checkpoint in LLaDA's layout with the shipped tokenizer; made in a moment, for tests that need no sense."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

import unmask

SHIPPED = Path(unmask.__file__).parent / "assets" / "tiny"
CONFIG: dict[str, Any] = {
    "activation_type": "silu",
    "alibi": False,
    "architectures": ["LLaDAModelLM"],
    "attention_layer_norm": False,
    "block_type": "llama",
    "d_model": 32,
    "embedding_size": 846,
    "eos_token_id": 1,
    "include_bias": False,
    "include_qkv_bias": False,
    "input_emb_norm": False,
    "layer_norm_type": "rms",
    "mask_token_id": 0,
    "max_sequence_length": 512,
    "mlp_hidden_size": 64,
    "model_type": "llada",
    "n_heads": 4,
    "n_kv_heads": 4,
    "n_layers": 2,
    "pad_token_id": 1,
    "rms_norm_eps": 1e-5,
    "rope": True,
    "rope_theta": 10000.0,
    "torch_dtype": "float32",
    "vocab_size": 846,
    "weight_tying": False,
}


def weights(config: dict[str, Any], seed: int = 0) -> dict[str, torch.Tensor]:
    """Random weights by LLaDA's names."""
    generator = torch.Generator().manual_seed(seed)
    d, ffn, vocab, root = config["d_model"], config["mlp_hidden_size"], config["embedding_size"], "model.transformer"
    shapes = {f"{root}.wte.weight": (vocab, d), f"{root}.ln_f.weight": (d,), f"{root}.ff_out.weight": (vocab, d)}
    for i in range(config["n_layers"]):
        block = f"{root}.blocks.{i}"
        shapes |= {f"{block}.{name}.weight": (d, d) for name in ("q_proj", "k_proj", "v_proj", "attn_out")}
        shapes |= {f"{block}.{name}.weight": (ffn, d) for name in ("ff_proj", "up_proj")}
        shapes |= {f"{block}.ff_out.weight": (d, ffn)}
        shapes |= {f"{block}.{name}.weight": (d,) for name in ("attn_norm", "ff_norm")}
    return {
        name: torch.ones(shape) if len(shape) == 1 else torch.randn(shape, generator=generator) * 0.2
        for name, shape in shapes.items()
    }


def make(folder: Path, *, tokenizer: bool = True, seed: int = 0, **changes: Any) -> Path:
    """Write the checkpoint into ``folder``; ``changes`` override config keys."""
    folder.mkdir(parents=True, exist_ok=True)
    config = CONFIG | changes
    (folder / "config.json").write_text(json.dumps(config))
    save_file(weights(config, seed), str(folder / "model.safetensors"))
    if tokenizer:
        for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
            shutil.copy(SHIPPED / name, folder / name)
    return folder
