"""What a checkpoint is, without loading it: the config, the tokenizer and the headers of the weight files are read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from .api import BUNDLED
from .core.errors import ModelError
from .models.transformer import Transformer
from .models.weights import Checkpoint, open_weights, parameter_count
from .text import Text


def inspect(path_or_id: str | Path | None = None) -> dict[str, Any]:
    """Describe a checkpoint, as plain values that fit in JSON; ``config.json`` alone is enough.

    Args:
        path_or_id: as for :func:`unmask.load`; of a hub id all but the weights is fetched.

    Returns:
        ``family``, ``parameters`` (counted on the meta device), ``sizes``, ``context``, ``mask``, ``eos``, ``pad``,
        ``shift``, ``dtype`` of the weights, ``tokenizer`` (its size, or None), ``chat_template``, ``files`` (name to
        bytes), ``bytes`` of the weight files, ``weights``: "complete", or what is missing or does not fit.

    Raises:
        ModelError: no such model, unsupported family or variant, a config that makes no sense.
    """
    checkpoint = Checkpoint.find(BUNDLED if path_or_id is None else path_or_id, weights=False)
    d = checkpoint.description
    text = Text.find(checkpoint.folder)
    spec = checkpoint.spec(len(text) if text else None, text.eos if text else ())
    files = {p.name: p.stat().st_size for p in sorted(checkpoint.folder.iterdir()) if p.is_file()}
    try:
        state = _state(checkpoint)
        dtype = str(checkpoint.dtype).removeprefix("torch.")
    except ModelError as error:
        state, dtype = str(error), str(checkpoint.config.get("torch_dtype") or checkpoint.config.get("dtype"))
    arch = d.arch
    return {
        "model": str(checkpoint.folder),
        "family": d.family,
        "parameters": parameter_count(d),
        "sizes": {
            "layers": arch.layers,
            "width": arch.width,
            "heads": arch.heads,
            "kv_heads": arch.kv_heads,
            "ffn": arch.ffn,
            "vocabulary": arch.vocab,
        },
        "context": spec.context,
        "mask": spec.mask,
        "eos": list(spec.eos),
        "pad": spec.pad,
        "shift": spec.shift,
        "dtype": dtype,
        "tokenizer": len(text) if text else None,
        "chat_template": bool(text and text.chat),
        "files": files,
        "bytes": sum(size for name, size in files.items() if name.endswith(".safetensors")),
        "weights": state,
    }


def _state(checkpoint: Checkpoint) -> str:
    """The word "complete", or the first weights that are missing or have another shape than the config implies."""
    with torch.device("meta"):
        network = Transformer(checkpoint.description.arch, 1)
    names = checkpoint.family.names(network.arch)
    held = checkpoint.files
    absent = [theirs for theirs in names.values() if theirs not in held]
    wrong = []
    wanted = {names[ours]: list(shape) for ours, shape in network.shapes().items()}
    for file in sorted(set(held.values())):
        with open_weights(file) as weights:
            inside = set(weights.keys())
            absent += [name for name in wanted if held.get(name) == file and name not in inside]
            wrong += [
                f"{name} has shape {shape}, config.json implies {wanted[name]}"
                for name in sorted(inside & set(wanted))
                if (shape := weights.get_slice(name).get_shape()) != wanted[name]
            ]
    if absent:
        return f"incomplete: {len(absent)} of {len(wanted)} weights missing, the first is {absent[0]}"
    count = len(set(held.values()))
    return f"wrong: {wrong[0]}" if wrong else f"complete: {len(wanted)} weights in {count} file{'s' * (count > 1)}"
