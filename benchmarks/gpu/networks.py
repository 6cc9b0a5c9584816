"""Networks of random weights at published shapes, and the bundled model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

import unmask
from unmask.models.denoiser import Denoiser
from unmask.models.graphs import Graphs, Rerun
from unmask.models.packing import Scheme
from unmask.models.random import random_denoiser, shape

SHAPES = ("llada-8b", "dream-7b")
MODES = ("eager", "graphs", "compiled", "compiled graphs")
BUNDLED = Path(unmask.__file__).parent / "assets" / "tiny"


def random(name: str, device: torch.device, dry: bool, weights: str = "none") -> Denoiser:
    """Weights drawn on the device, quantised as said; in a dry run those of the bundled model's shape."""
    scheme = Scheme.parse(weights)
    if dry:
        return random_denoiser(shape(str(BUNDLED)), device, torch.float32, scheme)
    return random_denoiser(shape(name), device, torch.bfloat16, scheme)


def bundled(device: torch.device, dtype: str) -> unmask.Model:
    """The model that comes with the package."""
    return unmask.load(device=device.type, dtype=dtype)


def graphs(device: torch.device, positions: int = 4096) -> Graphs:
    """Graphs for that device; where it has none the same with functions run again."""
    return Graphs(None if device.type == "cuda" else Rerun(), most=256, positions=positions)


@contextmanager
def mode(model: Denoiser, how: str, positions: int = 4096) -> Iterator[None]:
    """The model in one of ``MODES``; eager again afterwards."""
    from unmask.models.kernels import compiled
    from unmask.models.quantised import left_to_itself
    from unmask.models.transformer import EAGER

    if "compiled" in how:
        left_to_itself()
        model.network.use(compiled(EAGER, model.network.device.type))
    if "graphs" in how:
        model.graphs = graphs(model.network.device, positions)
    try:
        yield
    finally:
        model.network.use(EAGER)
        model.graphs = None
