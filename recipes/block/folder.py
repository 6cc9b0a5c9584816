"""The folder that ships: Llama's weight names, ``StableDiffcoderForCausalLM``, the length of a block in the config."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from data import Ids, load_tokenizer
from model import CONFIG, TinyLLaDA
from safetensors.torch import load_file
from streams import Streams

from verifier import llama_names, write_llama


def write(model: TinyLLaDA, tokenizer: Path, folder: Path) -> None:
    """Config, bfloat16 weights, and the tokenizer's files, which are those of another folder."""
    ids = Ids.of(load_tokenizer(tokenizer))
    write_llama(
        model,
        folder,
        architectures=["StableDiffcoderForCausalLM"],
        block_size=Streams.block,
        mask_token_id=ids.mask,
        bos_token_id=ids.bos,
        visibilities=["block", "order", "full"],
    )
    for file in (*tokenizer.glob("tokenizer*.json"), tokenizer / "special_tokens_map.json"):
        shutil.copy(file, folder / file.name)


def read(folder: Path) -> TinyLLaDA:
    """Such a folder's network, in float32."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    own = {
        "d_model": config["hidden_size"],
        "mlp_hidden_size": config["intermediate_size"],
        "n_layers": config["num_hidden_layers"],
        "n_heads": config["num_attention_heads"],
        "n_kv_heads": config["num_key_value_heads"],
        "max_sequence_length": config["max_position_embeddings"],
        "vocab_size": config["vocab_size"],
        "embedding_size": config["vocab_size"],
        **{key: config[key] for key in ("rms_norm_eps", "rope_theta", "eos_token_id", "pad_token_id", "mask_token_id")},
    }
    model = TinyLLaDA({**CONFIG, **own})
    weights = load_file(folder / "model.safetensors")
    model.load_state_dict({ours: weights[theirs].float() for ours, theirs in llama_names(model).items()})
    return model
