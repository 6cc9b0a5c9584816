"""The part ``passes``: what a forward pass takes, beside the least that its bytes and operations can take."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from statistics import median
from typing import Any

import device as devices
import networks
import torch
from book import Book
from torch import Tensor

from unmask.core.canvas import Canvas, Update
from unmask.core.protocols import Ask, Plan, Prediction, Sampling
from unmask.core.rows import Rows, gather
from unmask.core.store import Store, attend_stored, visible
from unmask.models.denoiser import Denoiser
from unmask.models.quantised import KINDS

ASKED = 32  # positions of a row whose logits are read
GRAPHED = 4096  # rows times positions up to which graphs are tried
QUICK = 30.0  # seconds that compiling may take, and that must be left for it


@dataclass(frozen=True)
class Point:
    """``rows`` canvases of ``length``, of each the last ``computed`` positions computed; the others are stored."""

    length: int
    rows: int
    computed: int

    @property
    def asked(self) -> int:
        """Positions of a row with logits."""
        return min(ASKED, self.computed, self.length - 1)


def points(dry: bool) -> list[tuple[Point, str]]:
    """What is measured, and how, in the order of how much it tells."""
    plain, fused = ("graphs", "eager"), ("compiled graphs", "compiled")
    if dry:
        return [(Point(48, rows, computed), how) for rows in (1, 2) for computed in (8, 48) for how in plain]
    many = ((8, 32), (32, 32), (4, 32), (16, 32), (16, 64), (4, 128), (4, 1024), (16, 1024), (32, 1))
    large = ((16, 2048, 32), (32, 2048, 32), (32, 512, 32), (32, 1024, 1024), (4, 2048, 2048))
    return [
        *((Point(1024, 1, computed), how) for computed in (32, 1, 64, 128, 256, 512, 1024) for how in plain),
        *((Point(1024, rows, computed), how) for rows, computed in many for how in plain),
        *((Point(1024, 1, computed), how) for computed in (32, 64, 128, 256, 1) for how in fused),
        *((Point(1024, rows, 32), how) for rows in (8, 32) for how in fused),
        *((Point(2048, 1, computed), how) for computed in (32, 1, 64, 128, 256, 512, 1024, 2048) for how in plain),
        *((Point(512, 1, computed), how) for computed in (32, 1, 64, 128, 256, 512) for how in plain),
        *((Point(length, rows, computed), how) for rows, length, computed in large for how in plain),
    ]


def few(dry: bool) -> list[tuple[Point, str]]:
    """What is measured of quantised weights."""
    if dry:
        return [(Point(48, 1, 8), "graphs")]
    sizes = ((1, 32), (8, 32), (32, 32), (1, 128), (1, 1024), (1, 1))
    return [(Point(1024, *size), how) for how in ("graphs", "eager", "compiled graphs") for size in sizes]


def measure(book: Book, device: torch.device, name: str, dry: bool, weights: str | None = None) -> None:
    """Measure all points of one shape that the time allows; with ``weights``, as for ``--quantize``, a few of them."""
    ceilings = devices.ceilings(book)
    model = networks.random(name, device, dry, weights or "none")
    left_out, kind = 0, {"weights": weights} if weights else {}
    for point, how in (few if kind else points)(dry):
        key = {"model": name, "how": how, "length": point.length, "rows": point.rows, "computed": point.computed} | kind
        if book.has(key) or ("graphs" in how and point.rows * point.computed > GRAPHED):
            continue
        least = ceilings.seconds(least_bytes(model, point), operations(model, point))
        needs = 20 * least + (QUICK if "compiled" in how and not _has_compiled(book, key) else 0.5)
        if book.left < needs:
            left_out += 1
            continue
        try:
            found = _point(model, device, point, how)
        except Exception as error:  # one point must not cost the others
            book.write(key, failed=f"{type(error).__name__}: {error}"[:600])
            _free(device)
            continue
        bytes_, many = least_bytes(model, point), operations(model, point)
        book.write(key, **found, least=least, share=least / found["seconds"], bytes=bytes_, operations=many)
    if left_out:
        book.write({"model": name, "what": "left out", **kind}, skipped=f"{left_out} points for want of time")


def quantised(book: Book, device: torch.device, dry: bool) -> None:
    """A few of them with quantised weights, and with those in bfloat16 beside them."""
    for weights in ("none", *KINDS):
        measure(book, device, "llada-8b", dry, weights)
        _free(device)


def _has_compiled(book: Book, key: dict[str, Any]) -> bool:
    return book.has(key | {"how": "compiled graphs", "length": 1024, "rows": 1, "computed": 32})


def _point(model: Denoiser, device: torch.device, point: Point, how: str) -> dict[str, Any]:
    devices.held(device)
    with torch.no_grad(), networks.mode(model, how, GRAPHED):
        forward = Forward(model, point)
        whole = devices.times(forward, device)
        network = devices.times(forward.network, device)
        graphs = model.graphs
    if graphs is not None and not graphs.hits:
        raise RuntimeError(f"no forward pass was run by a graph: {graphs.failure}")
    found = {
        "seconds": median(whole),
        "spread": [min(whole), max(whole)],
        "repeats": len(whole),
        "network": median(network),
        "network_spread": [min(network), max(network)],
        "peak": devices.peak(device),
    }
    del forward
    _free(device)
    return found


def _free(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()


class Forward:
    """One forward pass as policies and caches cause it: the plan, the layers, the head on the last positions."""

    def __init__(self, model: Denoiser, point: Point) -> None:
        self.model, device = model, model.network.device
        shape = (point.rows, point.length)
        tokens = torch.randint(min(model.spec.limit, model.spec.mask or model.spec.vocab), shape, device=device)
        tokens[:, point.length - point.asked :] = model.spec.mask
        compute = torch.arange(point.length, device=device).expand(shape) >= point.length - point.computed
        prompt = torch.full((point.rows,), point.length - point.asked, device=device)
        yes, nothing = torch.ones_like(prompt).bool(), torch.zeros_like(compute)
        whole, held = torch.full_like(prompt, point.length), torch.full_like(prompt, -1)
        self.canvas = Canvas(tokens, prompt, whole, whole, whole, held, held + 1, ~yes, nothing, model.spec)
        self.cache, self.ask = Stored(compute, point.computed == point.length), Ask(self.canvas.response)
        self.state = model.init(self.canvas, self.cache)
        zero = torch.zeros(point.rows, device=device, dtype=torch.float64)
        self.sampling, self.step = (
            Sampling(zero, zero + 1, zero.long(), zero.long(), samples=False, filters=False, delays=False),
            zero.long(),
        )
        self.asked = point.asked
        rows = gather(compute, self.canvas.valid)
        self.rows = replace(rows, rotary=model.network.rotate_rows(rows))
        self.ids = tokens.gather(1, self.rows.position.clamp(max=point.length - 1))  # slots may be more than positions

    def __call__(self) -> Any:
        """All of it, as the engine runs it."""
        return self.model(self.canvas, self.ask, self.cache, self.state, self.sampling, self.step)

    def network(self) -> Tensor:
        """The layers and the head alone; waits for nothing."""
        model = self.model
        run: Callable[..., Tensor] = partial(model._layers, self.cache, None)
        rows = replace(self.rows, scratch={}, layers=[], flat={})
        if model.graphs is None:
            hidden = run(self.ids, rows, self.state.plain)
        else:
            hidden = model.graphs(run, self.cache, model._variant, self.ids, rows, self.state.plain)
        return model.network.logits(hidden[:, -self.asked :].flatten(0, 1))


class Stored:
    """A cache that computes always the same positions: what any cache costs, less its choice."""

    name, paper, captures = "stored", "-", True

    def __init__(self, compute: Tensor, whole: bool) -> None:
        self.compute, self.whole = compute, whole

    def init(self, canvas: Canvas, geometry: Any, like: Tensor) -> Store:
        """Random keys and values; none where all positions are computed."""
        store = Store.empty(canvas, geometry, like)
        for slab in () if self.whole else (*store.key, *store.value):
            slab.data.normal_()
        return store

    def plan(self, canvas: Canvas, ask: Ask, need: Tensor, state: Store) -> tuple[Plan, Store]:
        """Always the same."""
        return Plan(self.compute, visible(canvas, ask, need), self.compute.sum(1).double()), state

    def layer(self, index: int, block: Any, hidden: Tensor, rows: Rows, state: Store) -> Tensor:
        """The ordinary layer, against the store if there is one."""
        if not self.whole:
            return attend_stored(index, block, hidden, rows, state)
        hidden = hidden + block.attend(*block.qkv(hidden, rows.rotary), rows.among)
        return hidden + block.mlp(hidden)

    def note(self, update: Update, prediction: Prediction, state: Store) -> Store:
        """Nothing to learn."""
        return state


def operations(model: Denoiser, point: Point) -> int:
    """Floating point operations of the matrix products; an addition and a multiplication are two."""
    arch = model.network.arch
    inner = arch.heads * arch.head_dim
    layer = arch.width * (sum(arch.stacked["qkv_proj"].values()) + inner + 3 * arch.ffn) + 2 * point.length * inner
    return 2 * point.rows * (point.computed * layer * arch.layers + point.asked * arch.vocab * arch.width)


def least_bytes(model: Denoiser, point: Point) -> int:
    """Bytes that must be read: the weights once, of the embedding none, and all keys and values."""
    arch, embedding = model.network.arch, model.network.embed.weight
    weights = sum(w.numel() * w.element_size() for w in model.network.parameters())
    weights -= 0 if arch.tied else embedding.numel() * embedding.element_size()
    stored = 2 * point.rows * point.length * arch.kv_heads * arch.head_dim * arch.layers
    return weights + embedding.element_size() * stored
