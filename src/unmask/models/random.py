"""Models of random weights, of a published architecture or any config.json: to measure with, not to decode."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..core.errors import ModelError
from .denoiser import Denoiser
from .loading import blank
from .packing import Scheme, place
from .quantised import KINDS, Packed
from .shapes import SHAPES as MORE
from .tensors import read_json
from .weights import Checkpoint, denoiser_of, parameter_count

_STD = 0.02
SHAPES: dict[str, dict[str, Any]] = {  # what the published config.json files say of sizes and ids
    "llada-8b": {
        "architectures": ["LLaDAModelLM"],
        "d_model": 4096,
        "n_heads": 32,
        "n_layers": 32,
        "mlp_hidden_size": 12288,
        "embedding_size": 126464,
        "max_sequence_length": 4096,
        "rope_theta": 500000.0,
        "mask_token_id": 126336,
        "eos_token_id": 126081,
    },
    "llada-220m": {  # of no published model: what a laptop decodes in a moment
        "architectures": ["LLaDAModelLM"],
        "d_model": 1024,
        "n_heads": 16,
        "n_layers": 16,
        "mlp_hidden_size": 2816,
        "embedding_size": 8192,
        "max_sequence_length": 4096,
        "rope_theta": 500000.0,
        "mask_token_id": 8191,
        "eos_token_id": 8190,
    },
    "dream-7b": {
        "architectures": ["DreamModel"],
        "hidden_size": 3584,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "num_hidden_layers": 28,
        "intermediate_size": 18944,
        "vocab_size": 152064,
        "max_position_embeddings": 131072,
        "rope_theta": 1000000.0,
        "mask_token_id": 151666,
        "eos_token_id": 151643,
    },
    **MORE,
}


def shape(name: str) -> Checkpoint:
    """The architecture of a name in ``SHAPES``, a config.json, or a folder with one; bfloat16 unless it says otherwise.

    Raises:
        ModelError: none of these, or a config that is not supported.
    """
    if name in SHAPES:
        found = Checkpoint(Path(name), {"torch_dtype": "bfloat16", **SHAPES[name]})
    else:
        path = Path(name).expanduser()
        path = path / "config.json" if path.is_dir() else path
        if not path.is_file():
            raise ModelError(f"no architecture {name!r}; accepted: {', '.join(SHAPES)}, or the path of a config.json")
        found = Checkpoint(path.parent, {"torch_dtype": "bfloat16", **read_json(path)})
    _ = found.description  # refuse now what is not supported
    return found


def random_denoiser(
    checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype, scheme: Scheme | None = None
) -> Denoiser:
    """A model of that architecture; weights are drawn where they stay, with seed 0.

    With a ``scheme`` they are drawn and quantised one by one: at no time are all of them floating point numbers.

    Raises:
        ModelError: more weights than the machine has memory.
    """
    d = checkpoint.description
    size = parameter_count(d) * (torch.empty(0, dtype=dtype).element_size() if scheme is None else scheme.bits / 8)
    memory = _memory() if device.type == "cpu" else None
    if memory is not None and size > memory:
        raise ModelError(
            f"random weights of {checkpoint.folder} take {size / 1e9:.1f} GB, the machine has {memory / 1e9:.1f} GB"
        )
    network = blank(d.arch, d.context).to(dtype)
    draw, made = torch.Generator(device).manual_seed(0), dict[str, Packed]()
    packed = {} if scheme is None else scheme.chosen(network)
    for name, weight in list(network.named_parameters()):
        path, _, kind = name.rpartition(".")
        drawn = torch.empty(weight.shape, dtype=dtype, device=device)
        drawn.fill_(1.0) if "norm" in name else drawn.normal_(0.0, _STD, generator=draw)
        if scheme is not None and path in packed and kind == "weight":
            made[path] = KINDS[scheme.kind].of(drawn)
        else:
            setattr(network.get_submodule(path), kind, nn.Parameter(drawn, requires_grad=False))
    place(network, made, device, dtype)
    network.make_rotary(d.context, device)
    return denoiser_of(network, checkpoint.spec())


def _memory() -> int | None:
    """Bytes of the machine; None where nobody tells."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows has none
        return None
