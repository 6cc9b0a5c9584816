"""The small networks that policies have learned: weights from a file of safetensors, and blocks in and out of them."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from .errors import ModelError

BUNDLED = Path(__file__).parents[1] / "assets" / "policies"
Shape = tuple[str | int, ...]


def load(policy: str, path: str | None, device: torch.device) -> dict[str, Tensor]:
    """A policy's weights in float64, so that a row is decided alike in any batch; None: the bundled ones.

    A file is read once; one that has been replaced since is read anew.

    Raises:
        ModelError: no such file, or not one of safetensors.
    """
    file = BUNDLED / f"{policy}.safetensors" if path is None else Path(path)
    try:
        found = file.stat()
    except OSError:
        raise ModelError(f"{policy}: no weights at {str(file)!r}; expected a file of safetensors") from None
    return _read(policy, file.resolve(), (found.st_ino, found.st_mtime_ns, found.st_size), device)


@lru_cache(maxsize=16)
def _read(policy: str, file: Path, stamp: tuple[int, ...], device: torch.device) -> dict[str, Tensor]:
    """The weights of a file as ``stamp`` says it is."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        found = load_file(file)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{policy}: the weights {str(file)!r} cannot be read: {str(error).splitlines()[0]}") from None
    return {name: weight.to(device, torch.float64) for name, weight in found.items()}


def fit(policy: str, weights: dict[str, Tensor], shapes: dict[str, Shape]) -> dict[str, int]:
    """The sizes that the letters in ``shapes`` stand for, each the same wherever it stands.

    Raises:
        ModelError: weights missing, surplus or of another shape.
    """
    odd = sorted(weights.keys() ^ shapes.keys())
    if odd:
        what = "are missing" if odd[0] in shapes else "have something else"
        raise ModelError(f"{policy}: the weights {what}: {odd[0]}; expected are {', '.join(shapes)}")
    sizes: dict[str, int] = {}
    for name, shape in shapes.items():
        found = tuple(weights[name].shape)
        same = len(found) == len(shape)
        for want, have in zip(shape, found, strict=False):
            same = same and have == (want if isinstance(want, int) else sizes.setdefault(want, have))
        if not same:
            wanted = ", ".join(str(sizes.get(str(part), part)) for part in shape)
            raise ModelError(f"{policy}: weights of another shape: {name} is {list(found)}, expected [{wanted}]")
    return sizes


def take(values: Tensor, place: Tensor, empty: float) -> Tensor:
    """``[B, Q]`` of ``values [B, T]`` at some places, ``empty`` at place T."""
    return F.pad(values, (0, 1), value=empty).gather(1, place)


def put(score: Tensor, place: Tensor, total: int) -> Tensor:
    """``[B, T]`` with ``score [B, Q]`` at some places (T: nowhere) and -inf elsewhere."""
    wide = torch.full((len(score), total + 1), -torch.inf, dtype=score.dtype, device=score.device)
    return wide.scatter(1, place, score)[:, :total]
