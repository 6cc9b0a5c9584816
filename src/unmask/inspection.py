"""What a checkpoint is, without loading it: the config, the tokenizer and the headers of the weight files are read."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from .api import BUNDLED
from .core.canvas import NO_MASK
from .core.errors import ModelError
from .models.loading import blank, fits
from .models.packing import Scheme, products
from .models.placement import pick_device
from .models.quantised_writer import quantise
from .models.recommended import recommended
from .models.transformer import Architecture
from .models.weights import Checkpoint, parameter_count
from .text import Text

_SIZES = ("layers", "width", "heads", "kv_heads", "ffn")
_WEIGHTS = (".safetensors", ".bin", ".gguf")


def inspect(
    path_or_id: str | Path | None = None,
    *,
    revision: str | None = None,
    adapter: str | Path | None = None,
    block_length: int | None = None,
    quantize: str = "auto",
) -> dict[str, Any]:
    """Describe a checkpoint, as plain values that fit in JSON; ``config.json`` alone is enough.

    Args:
        path_or_id: as for :func:`unmask.load`; of a hub id all but the weights is fetched.
        revision: a branch, tag or commit of a hub id.
        adapter: a LoRA adapter, as for :func:`unmask.load`.
        block_length: of a block-causal model, as for :func:`unmask.load`.
        quantize: as for :func:`unmask.load`; what would run is said by ``products``.

    Returns:
        ``family``, ``attention`` ("full" or "block-causal"), ``block`` (how long a block is: a number; None under full
        attention; what is wrong, where it is not known), ``parameters`` (counted on the meta device) and ``active``
        (those that one position is computed with), ``experts`` (their number, those of a token, width, shared width and
        layers, or None), ``sizes``, ``context``, ``mask``, ``eos``, ``pad``,
        ``shift``, ``dtype`` of the weights, ``stored`` (how they are quantised, or None), ``products`` (what would
        compute with them here), ``adapter`` (path, rank, alpha and number of modules, or None),
        ``recommended`` (policy, cache and gen_length, and who says so), ``tokenizer`` (its size, or None),
        ``chat_template``, ``files`` (name to bytes), ``bytes`` of the weight files, ``weights``: "complete", or what is
        missing or does not fit.

    Raises:
        ModelError: no such model, unsupported family or variant, a config that makes no sense.
    """
    path = BUNDLED if path_or_id is None else path_or_id
    checkpoint = Checkpoint.find(path, weights=False, revision=revision, adapter=adapter, block_length=block_length)
    d, scheme = checkpoint.description, Scheme.parse(quantize, checkpoint.stored)
    text = Text.find(checkpoint.folder, checkpoint.control)
    files, arch = _files(checkpoint), d.arch
    state, dtype = _weights(checkpoint)
    return {
        "model": str(checkpoint.folder),
        "family": d.family,
        "attention": "full" if d.blocks is None else "block-causal",
        "block": _block(checkpoint),
        "parameters": parameter_count(d),
        "active": parameter_count(d, active=True),
        "experts": _experts(arch),
        "sizes": _sizes(arch),
        "context": d.context,
        "mask": None if d.mask == NO_MASK else d.mask,
        "eos": list(checkpoint.eos(text.eos if text else ())),
        "pad": d.pad,
        "shift": d.shift,
        "dtype": dtype,
        "stored": str(checkpoint.stored) if checkpoint.stored else None,
        "products": products(scheme, pick_device("auto"), dtype),
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


def _block(checkpoint: Checkpoint) -> int | str | None:
    """The block length, or why there is none; one that is given must make sense."""
    try:
        return checkpoint.block
    except ModelError as error:
        if checkpoint.block_length is not None:
            raise
        return str(error)


def _sizes(arch: Architecture) -> dict[str, int]:
    names = {name: name for name in ("layers", "width", "heads", "kv_heads", "ffn")} | {"vocabulary": "vocab"}
    return {ours: getattr(arch, name) for ours, name in names.items()}


def _experts(arch: Architecture) -> dict[str, int] | None:
    """What the layers have instead of a SwiGLU."""
    if arch.experts is None:
        return None
    experts, layers = arch.experts, arch.layers - len(arch.experts.dense)
    sizes = {"count": experts.count, "chosen": experts.chosen, "width": experts.width, "shared": experts.shared}
    return {**sizes, "layers": layers}


def _weights(checkpoint: Checkpoint) -> tuple[str, str]:
    """What is to be said of the weights, and their dtype."""
    try:
        return _state(checkpoint), str(checkpoint.dtype).removeprefix("torch.")
    except ModelError as error:
        return str(error), str(checkpoint.config.get("torch_dtype") or checkpoint.config.get("dtype"))


def _files(checkpoint: Checkpoint) -> dict[str, int]:
    """The bytes of each file, by its name."""
    found = [checkpoint.gguf.path] if checkpoint.gguf else sorted(checkpoint.folder.iterdir())
    return {p.name: p.stat().st_size for p in found if p.is_file()}


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
        if not fits(shape, shapes[names[theirs]]):
            wrong.append(f"{theirs} has shape {shape}, config.json implies {list(shapes[names[theirs]])}")
    if absent:
        return f"incomplete: {len(absent)} of {len(names)} weights missing, the first is {absent[0]}"
    count = len({tensors.file(theirs) for theirs in names})
    return f"wrong: {wrong[0]}" if wrong else f"complete: {len(names)} weights in {count} file{'s' * (count > 1)}"


def write_quantised(
    path_or_id: str | Path | None,
    folder: Path,
    kind: str = "int8",
    *,
    revision: str | None = None,
    adapter: str | Path | None = None,
) -> tuple[int, int, int]:
    """Write a quantised copy of a model into a new folder, which loads like any other.

    Args:
        path_or_id, revision, adapter: as for :func:`unmask.load`.
        folder: a new one, or an empty one.
        kind: ``"int8"`` or ``"int4"``, with ``"+head"`` for the head as well.

    Returns:
        The number of weights written, their bytes, and what they would take in bfloat16.

    Raises:
        ModelError: no such model or kind, weights that are missing or cannot be quantised, a folder that is not empty.
    """
    scheme = Scheme.parse(kind)
    if scheme is None:
        raise ModelError(f"kind must be int8 or int4, with +head for the head as well; got {kind!r}")
    checkpoint = Checkpoint.find(BUNDLED if path_or_id is None else path_or_id, revision=revision, adapter=adapter)
    sizes = [size for _, size in quantise(checkpoint, scheme, folder)]
    return len(sizes), sum(sizes), 2 * parameter_count(checkpoint.description)
