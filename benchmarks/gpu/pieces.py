"""The part ``pieces``: what the pieces of the layers take, each alone, all layers in one graph."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import Any

import device as devices
import networks
import torch
import torch.nn.functional as F
from book import Book

from unmask.models.attention import attention, rotate
from unmask.models.denoiser import Denoiser

LENGTH = 1024
MODELS = ("llada-8b", "dream-7b")


def measure(book: Book, device: torch.device, dry: bool) -> None:
    """All pieces for some numbers of positions, of both shapes as long as time allows."""
    length, counts = (48, (8,)) if dry else (LENGTH, (32, 1, 64, 256))
    for name in MODELS[: 1 if dry else None]:
        model: Any = None
        for count in counts:
            for piece in NAMES:
                key = {"model": name, "piece": piece, "positions": count, "length": length}
                if book.has(key) or book.left < 2:
                    continue
                model = model or networks.random(name, device, dry)
                try:
                    book.write(key, **_piece(model, device, piece, count, length))
                except Exception as error:  # one piece must not cost the others
                    book.write(key, failed=f"{type(error).__name__}: {error}"[:600])


def _piece(model: Denoiser, device: torch.device, name: str, count: int, length: int) -> dict[str, Any]:
    with torch.no_grad():
        make, bytes_ = _pieces(model, count, length)[name]
        blocks: Any = model.network.blocks
        run = _graph(lambda: [make(block) for block in (blocks if name != "head" else blocks[:1])], device)
        found = devices.times(run, device, budget=0.05)
    return {"seconds": median(found), "spread": [min(found), max(found)], "repeats": len(found), "bytes": bytes_}


def _graph(run: Callable[[], Any], device: torch.device) -> Callable[[], Any]:
    if device.type != "cuda":
        return run
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


NAMES = (
    "norm",
    "qkv product",
    "rotary",
    "store",
    "attention",
    "attention, masked",
    "attention, masked, grouped in queries",
    "output product",
    "gate and up product",
    "activation",
    "down product",
    "add",
    "head",
)


def _pieces(model: Denoiser, count: int, length: int) -> dict[str, tuple[Callable[[Any], Any], int]]:
    """What each does with a block, and the bytes of weights, keys and values that it must read in all layers."""
    network = model.network
    arch, like = network.arch, network.embed.weight

    def new(*shape: int) -> torch.Tensor:
        return torch.randn(shape, device=like.device, dtype=torch.float32).to(like.dtype)

    hidden, inner, both = new(1, count, arch.width), new(1, count, arch.ffn), new(1, count, 2 * arch.ffn)
    attended = new(1, count, arch.heads * arch.head_dim)
    heads = new(1, count, arch.heads + arch.kv_heads, arch.head_dim)
    query, fresh = new(1, count, arch.heads, arch.head_dim), new(1, count, arch.kv_heads, arch.head_dim)
    keys = [new(1, length, arch.kv_heads, arch.head_dim) for _ in range(arch.layers)]
    values = [new(1, length, arch.kv_heads, arch.head_dim) for _ in range(arch.layers)]
    order = {id(block): place for place, block in enumerate(network.blocks)}
    rotary = network.rotary[None, :count]
    place = torch.arange(count, device=like.device)
    seen = torch.arange(length, device=like.device)[None] < length - 5
    each, groups = like.element_size(), arch.heads // arch.kv_heads
    weights = {name: each * arch.layers * sum(w.numel() for w in getattr(network.blocks[0], name).parameters())
               for name in ("qkv_proj", "o", "gate_up", "down")}  # fmt: skip
    stored = 2 * each * length * arch.kv_heads * arch.head_dim * arch.layers

    def put(block: Any) -> None:
        for store in (keys, values):
            store[order[id(block)]][0].index_copy_(0, place, fresh[0])

    def attend(mask: torch.Tensor | None) -> Callable[[Any], Any]:
        return lambda b: attention(query, keys[order[id(b)]], values[order[id(b)]], mask)

    def grouped(block: Any) -> torch.Tensor:
        """A mask that is the same for all queries lets the heads that share keys stand in a row as queries."""
        key, value = (part[order[id(block)]].transpose(1, 2) for part in (keys, values))
        q = query.view(1, count, arch.kv_heads, groups, arch.head_dim).permute(0, 2, 3, 1, 4).flatten(2, 3)
        out = F.scaled_dot_product_attention(q, key, value, attn_mask=seen[:, None, None])
        return out.view(1, arch.kv_heads, groups, count, arch.head_dim).permute(0, 3, 1, 2, 4).flatten(2)

    def activate(_: Any) -> torch.Tensor:
        gate, up = both.chunk(2, -1)
        return F.silu(gate) * up

    head = network.embed.weight if network.head is None else network.head.weight
    return {
        "norm": (lambda b: (b.attn_norm(hidden), b.mlp_norm(hidden)), 0),
        "qkv product": (lambda b: b.qkv_proj(hidden), weights["qkv_proj"]),
        "rotary": (lambda b: rotate(heads, rotary), 0),
        "store": (put, 0),
        "attention": (attend(None), stored),
        "attention, masked": (attend(seen), stored),
        "attention, masked, grouped in queries": (grouped, stored),
        "output product": (lambda b: b.o(attended), weights["o"]),
        "gate and up product": (lambda b: b.gate_up(hidden), weights["gate_up"]),
        "activation": (activate, 0),
        "down product": (lambda b: b.down(inner), weights["down"]),
        "add": (lambda b: (hidden + hidden, hidden + hidden), 0),
        "head": (lambda b: network.logits(hidden[0]), each * head.numel()),
    }
