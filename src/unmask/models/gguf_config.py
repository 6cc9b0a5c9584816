"""What a GGUF file says beside its tensors, as the files of a checkpoint's folder: config and tokenizer."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..core.errors import ModelError
from .gguf_tensors import Gguf, GgufTensors, opened

ENDING = ".gguf"
_SPLITS = {  # how llama.cpp's kinds of tokenizer split a text into words, and whether whole words come before merges
    "llama": (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
        r"|\s+(?!\S)|\s+",
        True,
    ),
    "qwen": (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
        r"|\s+(?!\S)|\s+",
        False,
    ),
    "bailing": (
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",
        False,
    ),
    "gpt2": (r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+", False),
}
_PRE = {
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3"), "llama"),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen"), "qwen"),
    **dict.fromkeys(("llada-moe", "bailingmoe", "bailingmoe2"), "bailing"),
    "gpt-2": "gpt2",
}
_NORMAL, _CONTROL, _USER, _UNUSED = 1, 3, 4, 5  # of tokenizer.ggml.token_type
_ROLES = ("bos", "eos", "pad", "mask", "unk", "sep", "cls")
_KEYS = {"unk": "unknown", "pad": "padding", "sep": "seperator"}  # as GGUF spells them, the last included


class Inside(type(Path())):  # type: ignore[misc]  # pathlib's concrete class differs by system
    """A path into a GGUF file, whose metadata stand there as the files of a folder."""

    def read_text(self, *args: Any, **more: Any) -> str:
        """One of the files.

        Raises:
            FileNotFoundError: there is none of that name.
            ModelError: the file cannot be read.
        """
        held = texts(Path(self.parent))
        if self.name not in held:
            raise FileNotFoundError(2, "no such part", str(self))
        return held[self.name]

    def read_bytes(self) -> bytes:
        """One of the files."""
        return self.read_text().encode()

    def is_dir(self, *args: Any, **more: Any) -> bool:
        """No: a part is a file, and so is what holds it."""
        return False

    def exists(self, *args: Any, **more: Any) -> bool:
        """Whether there is such a part, or file."""
        return super().exists() if self.suffix == ENDING else self.name in texts(Path(self.parent))

    def iterdir(self) -> Iterator[Path]:
        """The parts."""
        return (self / name for name in texts(Path(self)))


def texts(path: Path) -> dict[str, str]:
    """Files of a checkpoint's folder by name, ``config.json`` and those of the tokenizer.

    Raises:
        ModelError: the file cannot be read, or is of another kind of model.
    """
    gguf = opened(Path(path))
    files = {"config.json": config(gguf)}
    if "tokenizer.ggml.tokens" in gguf.metadata:
        files |= {"tokenizer.json": _tokenizer(gguf), "tokenizer_config.json": _roles(gguf)}
    return {name: json.dumps(value, ensure_ascii=False) for name, value in files.items()}


def config(gguf: Gguf) -> dict[str, Any]:
    """The config.json that a file was made of, as far as its metadata tell.

    Raises:
        ModelError: another kind of model, or a size that is missing.
    """
    make = _CONFIGS.get(gguf.architecture)
    if make is None:
        raise ModelError(
            f"{gguf.path} holds a model of the architecture {gguf.architecture!r}; supported in GGUF: "
            f"{', '.join(_CONFIGS)}"
        )
    if "rope_freqs.weight" in gguf.held:
        raise ModelError(f"{gguf.path} has rope_freqs.weight: rotary frequencies of its own are not supported in GGUF")
    made = make(gguf) | {"torch_dtype": str(gguf.dtype).removeprefix("torch.")}
    for role in ("bos", "eos", "pad", "mask"):
        found = gguf.number(f"tokenizer.ggml.{_KEYS.get(role, role)}_token_id")
        if found is not None:
            made[f"{role}_token_id"] = found
    return made


def tensors(gguf: Gguf) -> GgufTensors:
    """The tensors, with the rows of queries and keys where our rotary embedding wants them."""
    heads = _size(gguf, "attention.head_count")
    permuted = gguf.architecture == "llada"  # of the four, llama.cpp permutes this one alone
    kv = _size(gguf, "attention.head_count_kv", heads)
    return GgufTensors(gguf, {"attn_q": heads, "attn_k": kv} if permuted else {})


def _size(gguf: Gguf, key: str, default: int | None = None) -> int:
    full = f"{gguf.architecture}.{key}"
    found = gguf.number(full)
    if found is None and default is None:
        raise ModelError(f"{gguf.path} has no {full}")
    return default if found is None else found  # type: ignore[return-value]


def _llada(gguf: Gguf) -> dict[str, Any]:
    heads = _size(gguf, "attention.head_count")
    return {
        "architectures": ["LLaDAModelLM"],
        "d_model": _size(gguf, "embedding_length"),
        "n_layers": _size(gguf, "block_count"),
        "n_heads": heads,
        "n_kv_heads": _size(gguf, "attention.head_count_kv", heads),
        "mlp_hidden_size": _size(gguf, "feed_forward_length"),
        "embedding_size": _rows(gguf),
        "max_sequence_length": _size(gguf, "context_length"),
        "rms_norm_eps": gguf.metadata.get("llada.attention.layer_norm_rms_epsilon"),
        "weight_tying": "output.weight" not in gguf.held,
        "include_qkv_bias": "blk.0.attn_q.bias" in gguf.held,
        **_rope(gguf),
    }


def _dream(gguf: Gguf) -> dict[str, Any]:
    heads, width = _size(gguf, "attention.head_count"), _size(gguf, "embedding_length")
    return {
        "architectures": ["DreamModel"],
        "hidden_size": width,
        "num_hidden_layers": _size(gguf, "block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": _size(gguf, "attention.head_count_kv", heads),
        "head_dim": _size(gguf, "attention.key_length", width // heads),
        "intermediate_size": _size(gguf, "feed_forward_length"),
        "vocab_size": _rows(gguf),
        "max_position_embeddings": _size(gguf, "context_length"),
        "rms_norm_eps": gguf.metadata.get(f"{gguf.architecture}.attention.layer_norm_rms_epsilon"),
        "tie_word_embeddings": "output.weight" not in gguf.held,
        **_rope(gguf),
    }


def _llada_moe(gguf: Gguf) -> dict[str, Any]:
    layers, made = _size(gguf, "block_count"), _dream(gguf)
    made["dense_intermediate_size"] = made.pop("intermediate_size")
    return {
        **made,
        **_experts(gguf, "expert_intermediate_size"),
        "architectures": ["LLaDAMoEModelLM"],
        "moe_layer_freq": [1] * layers,
        "qk_layernorm": "blk.0.attn_q_norm.weight" in gguf.held,
    }


def _rnd1(gguf: Gguf) -> dict[str, Any]:
    made = {**_dream(gguf), **_experts(gguf, "moe_intermediate_size"), "architectures": ["RND1LM"]}
    return made | {"is_causal": False, "norm_topk_prob": True}


def _experts(gguf: Gguf, width: str) -> dict[str, Any]:
    return {
        "num_experts": _size(gguf, "expert_count"),
        "num_experts_per_tok": _size(gguf, "expert_used_count"),
        width: _size(gguf, "expert_feed_forward_length"),
    }


_CONFIGS: dict[str, Callable[[Gguf], dict[str, Any]]] = {
    "llada": _llada,
    "dream": _dream,
    "llada-moe": _llada_moe,
    "rnd1": _rnd1,
}


def _rows(gguf: Gguf) -> int:
    """Of the embedding."""
    if "token_embd.weight" not in gguf.held:
        raise ModelError(f"{gguf.path} has no token_embd.weight")
    return int(gguf.held["token_embd.weight"].shape[-1])


def _rope(gguf: Gguf) -> dict[str, Any]:
    """Rotary settings, as config.json has them."""
    begin = f"{gguf.architecture}.rope."
    given = {key.removeprefix(begin): value for key, value in gguf.metadata.items() if key.startswith(begin)}
    heads, width = _size(gguf, "attention.head_count"), _size(gguf, "embedding_length")
    head = _size(gguf, "attention.key_length", width // heads)
    made = {
        "rope_theta": given.get("freq_base", 10000.0),
        "partial_rotary_factor": given.get("dimension_count", head) / head,
    }
    kind = given.get("scaling.type", "none")
    if kind == "none":
        return made
    known = {"factor": "scaling.factor", "original_max_position_embeddings": "scaling.original_context_length"}
    more = {name: given[key] for name, key in known.items() if key in given}
    odd = sorted(k for k in given if k.startswith("scaling.yarn_"))
    if kind not in ("linear", "yarn") or odd:
        raise ModelError(f"{gguf.path}: {begin}{odd[0] if odd else 'scaling.type'} is not supported")
    return made | {"rope_scaling": {"rope_type": kind, **more}}


def _roles(gguf: Gguf) -> dict[str, Any]:
    """``tokenizer_config.json``: names of control tokens by role, and the chat template."""
    names, made = gguf.metadata["tokenizer.ggml.tokens"], dict[str, Any]()
    for role in _ROLES:
        at = gguf.number(f"tokenizer.ggml.{_KEYS.get(role, role)}_token_id")
        if at is not None and 0 <= at < len(names):
            made[f"{role}_token"] = names[at]
    for key in ("add_bos_token", "add_eos_token"):
        if isinstance(gguf.metadata.get(f"tokenizer.ggml.{key}"), bool):
            made[key] = gguf.metadata[f"tokenizer.ggml.{key}"]
    template = gguf.metadata.get("tokenizer.chat_template")
    return made | ({"chat_template": template} if template else {})


def _tokenizer(gguf: Gguf) -> dict[str, Any]:
    """``tokenizer.json``: byte-pair encoding on bytes, as all four kinds of model have it.

    Raises:
        ModelError: another kind of tokenizer, or one that splits texts in a way that is not known.
    """
    kind, pre = (gguf.metadata.get(f"tokenizer.ggml.{key}") for key in ("model", "pre"))
    if kind != "gpt2" or pre not in _PRE:
        raise ModelError(
            f"{gguf.path}: its tokenizer is of the kind {kind!r}, {pre!r}; supported is 'gpt2' with {', '.join(_PRE)}"
        )
    pattern, whole = _SPLITS[_PRE[pre]]
    tokens = gguf.metadata["tokenizer.ggml.tokens"]
    types = gguf.metadata.get("tokenizer.ggml.token_type") or [_NORMAL] * len(tokens)
    added = [
        {"id": i, "content": token, "special": types[i] == _CONTROL}
        | dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        for i, token in enumerate(tokens)
        if types[i] in (_CONTROL, _USER)
    ]
    plain = {token: i for i, token in enumerate(tokens) if types[i] != _UNUSED}
    merges = [merge.split(" ", 1) for merge in gguf.metadata.get("tokenizer.ggml.merges") or []]
    merges = [pair for pair in merges if all(part in plain for part in (*pair, "".join(pair)))]
    pieces = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return {
        "version": "1.0",
        "added_tokens": added,
        "normalizer": {"type": "NFC"} if _PRE[pre] == "qwen" else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, pieces]},
        "post_processor": None,
        "decoder": pieces,
        "model": {"type": "BPE", "vocab": plain, "merges": merges, "ignore_merges": whole},
    }
