"""What a checkpoint is, without loading it: the config, the tokenizer and the headers of the weight files are read."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from .api import BUNDLED
from .core.errors import ModelError
from .models.loading import blank
from .models.recommended import recommended
from .models.weights import Checkpoint, parameter_count
from .text import Text

_WEIGHTS = (".safetensors", ".bin")


def inspect(
    path_or_id: str | Path | None = None, *, revision: str | None = None, adapter: str | Path | None = None
) -> dict[str, Any]:
    """Describe a checkpoint, as plain values that fit in JSON; ``config.json`` alone is enough.

    Args:
        path_or_id: as for :func:`unmask.load`; of a hub id all but the weights is fetched.
        revision: a branch, tag or commit of a hub id.
        adapter: a LoRA adapter, as for :func:`unmask.load`.

    Returns:
        ``family``, ``parameters`` (counted on the meta device), ``sizes``, ``context``, ``mask``, ``eos``, ``pad``,
        ``shift``, ``dtype`` of the weights, ``adapter`` (path, rank, alpha and number of modules, or None),
        ``recommended`` (policy, cache and gen_length, and who says so), ``tokenizer`` (its size, or None),
        ``chat_template``, ``files`` (name to bytes), ``bytes`` of the weight files, ``weights``: "complete", or what is
        missing or does not fit.

    Raises:
        ModelError: no such model, unsupported family or variant, a config that makes no sense.
    """
    checkpoint = Checkpoint.find(
        BUNDLED if path_or_id is None else path_or_id, weights=False, revision=revision, adapter=adapter
    )
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
        "adapter": checkpoint.adapter.summary() if checkpoint.adapter else None,
        "recommended": asdict(recommended(checkpoint)),
        "tokenizer": len(text) if text else None,
        "chat_template": bool(text and text.chat),
        "files": files,
        "bytes": sum(
            size for name, size in files.items() if name.endswith(_WEIGHTS) and not name.startswith("adapter_")
        ),
        "weights": state,
    }


def _state(checkpoint: Checkpoint) -> str:
    """The word "complete", or the first weights that are missing or have another shape than the config implies."""
    names, tensors = {theirs: ours for ours, theirs in checkpoint.names.items()}, checkpoint.tensors
    shapes, held = blank(checkpoint.description.arch).shapes_of(checkpoint.names), set(tensors.names())
    absent = [theirs for theirs in names if theirs not in held]
    wrong = []
    for theirs in tensors.names():
        if theirs not in names:
            continue
        try:
            shape = tensors.shape(theirs)
        except ModelError:  # the index names a shard that does not hold it
            absent.append(theirs)
            continue
        if shape != list(shapes[names[theirs]]):
            wrong.append(f"{theirs} has shape {shape}, config.json implies {list(shapes[names[theirs]])}")
    if absent:
        return f"incomplete: {len(absent)} of {len(names)} weights missing, the first is {absent[0]}"
    count = len({tensors.file(theirs) for theirs in names})
    return f"wrong: {wrong[0]}" if wrong else f"complete: {len(names)} weights in {count} file{'s' * (count > 1)}"
