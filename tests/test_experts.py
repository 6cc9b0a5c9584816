"""Mixtures of experts: routing against a transcription token by token, sorted products against one at a time, cost."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from helpers import ARCH, tiny
from refusals import refuses
from unmask.core.errors import ModelError
from unmask.core.rows import gather
from unmask.models import experts as made
from unmask.models.attention import wide
from unmask.models.experts import Experts, Mixture, Router
from unmask.models.transformer import linear

WIDTH = 24
SOFTMAX = Experts(count=8, chosen=3, width=20)
KINDS = {
    "softmax": SOFTMAX,
    "softmax, normalised": replace(SOFTMAX, normalised=True),
    "softmax, offsets that stay": replace(SOFTMAX, offset="weight", shared=12),
    "sigmoid, groups, offsets to choose by": Experts(
        count=12, chosen=3, width=20, shared=12, sigmoid=True, normalised=True, scale=2.5, groups=4, kept=2,
        offset="choice",
    ),
    "one of two groups": Experts(count=8, chosen=4, width=20, sigmoid=True, normalised=True, groups=2, kept=1),
    "one expert": replace(SOFTMAX, chosen=1),
    "all experts": replace(SOFTMAX, chosen=8, normalised=True),
}  # fmt: skip


def mixture(experts: Experts, dtype: torch.dtype = torch.float64, seed: int = 0) -> Mixture:
    """With random weights, and offsets large enough to change what is chosen."""
    draw = torch.Generator().manual_seed(seed)
    module = Mixture(WIDTH, experts, linear)
    for name, weight in module.named_parameters():
        scale = 0.3 if "offset" in name else 0.4
        weight.data = torch.randn(weight.shape, generator=draw, dtype=torch.float64).to(dtype) * scale
    return module.requires_grad_(False)


def inputs(count: int, dtype: torch.dtype = torch.float64, seed: int = 1) -> Tensor:
    return torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def chosen_by_hand(router: Router, token: Tensor) -> dict[int, float]:
    """The experts of one token and their weights, in numbers of Python."""
    e, logits = router.experts, (router.weight.double() @ token.double()).tolist()
    total = sum(math.exp(x) for x in logits)
    scores = [1 / (1 + math.exp(-x)) if e.sigmoid else math.exp(x) / total for x in logits]
    offset = router.offset.tolist() if e.offset else [0.0] * e.count
    ranked = [s + o for s, o in zip(scores, offset, strict=True)]
    size = e.count // e.groups
    groups = [ranked[g * size : (g + 1) * size] for g in range(e.groups)]
    best = sorted(range(e.groups), key=lambda g: -sum(sorted(groups[g])[-2:]))[: e.kept]
    allowed = [i for i in range(e.count) if i // size in best]
    taken = sorted(allowed, key=lambda i: -ranked[i])[: e.chosen]
    weights = {i: ranked[i] if e.offset == "weight" else scores[i] for i in taken}
    total = sum(weights.values()) if e.normalised else 1.0
    return {i: w / total * e.scale for i, w in weights.items()}


def swiglu(token: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    gate, up = (gate_up @ token).chunk(2)
    return down @ (gate * gate.sigmoid() * up)


def by_hand(module: Mixture, token: Tensor) -> Tensor:
    e = module.experts
    first, second = (w.view(e.count, -1, w.shape[1]) for w in (module.experts_in.weight, module.experts_out.weight))
    out = torch.zeros_like(token)
    for i, weight in chosen_by_hand(module.router, token).items():
        out = out + weight * swiglu(token, first[i], second[i])
    if e.shared:
        out = out + swiglu(token, module.shared_in.weight, module.shared_out.weight)
    return out


@pytest.mark.parametrize("kind", KINDS)
def test_as_token_by_token(kind: str) -> None:
    module, x = mixture(KINDS[kind]), inputs(40)
    found = module(x.view(2, 20, WIDTH))
    assert found.shape == (2, 20, WIDTH)
    torch.testing.assert_close(found.flatten(0, 1), torch.stack([by_hand(module, token) for token in x]))


@pytest.mark.parametrize("kind", KINDS)
def test_routing(kind: str) -> None:
    module, x = mixture(KINDS[kind]), inputs(60)
    chosen, weight = module.router(x)
    for token, ids, weights in zip(x, chosen.tolist(), weight.tolist(), strict=True):
        expected = chosen_by_hand(module.router, token)
        assert ids == list(expected), "best first"
        assert weights == pytest.approx(list(expected.values()))


def test_offsets_and_groups_change_what_is_chosen() -> None:
    """Else the tests above would not see them."""
    kind = KINDS["sigmoid, groups, offsets to choose by"]
    module, x = mixture(kind), inputs(60)
    chosen = module.router(x)[0].sort(-1).values
    free = module.router
    free.experts = replace(kind, groups=1, kept=1)
    assert not torch.equal(free(x)[0].sort(-1).values, chosen)
    free.experts = replace(kind, offset="")
    assert not torch.equal(free(x)[0].sort(-1).values, chosen)


def test_the_router_calculates_in_float32() -> None:
    module, x = mixture(SOFTMAX, torch.bfloat16), inputs(50, torch.bfloat16)
    chosen, weight = module.router(x)
    exact = (wide(x) @ wide(module.router.weight).T).softmax(-1).topk(3, -1)
    assert weight.dtype == torch.float32
    assert torch.equal(chosen, exact.indices)
    assert torch.equal(weight, exact.values)
    assert module(x).dtype == torch.bfloat16


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [1, 7, 200])
def test_one_grouped_product_is_the_products_one_by_one(kind: str, count: int) -> None:
    """What runs on CUDA, with torch's own product for the CPU in place of the kernel."""
    if made._grouped() is None:
        pytest.skip("this torch has no grouped product")
    module, x = mixture(KINDS[kind], torch.float32), inputs(count, torch.float32)
    alone = module(x)
    with mock.patch.object(Mixture, "grouped", True):
        torch.testing.assert_close(module(x), alone, rtol=1e-5, atol=1e-5)


def test_without_tokens_there_is_nothing() -> None:
    assert mixture(KINDS["softmax, offsets that stay"])(inputs(0)).shape == (0, WIDTH)


def test_pieces_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    module, x = mixture(KINDS["sigmoid, groups, offsets to choose by"]), inputs(50)
    whole = module(x)
    monkeypatch.setattr(made, "_ROWS_AT_ONCE", 30)
    torch.testing.assert_close(module(x), whole)


def test_gradients_reach_every_part() -> None:
    module = mixture(KINDS["softmax, offsets that stay"]).requires_grad_(True)
    module(inputs(50)).square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in module.parameters())


def multiplications(module: torch.nn.Module, x: Tensor) -> int:
    with FlopCounterMode(display=False) as counter:
        module(x)
    return counter.get_total_flops() // 2


@pytest.mark.parametrize("count", [1, 5, 64, 300])
@pytest.mark.parametrize("experts", [8, 64])
def test_the_cost_grows_with_the_tokens_routed_not_with_the_experts(count: int, experts: int) -> None:
    kind = Experts(count=experts, chosen=3, width=20, shared=12)
    found = multiplications(mixture(kind), inputs(count))
    routing, each, shared = experts * WIDTH, 3 * WIDTH * 20, 3 * WIDTH * 12
    assert found == count * (routing + 3 * each + shared)


def test_parameters_that_a_position_is_computed_with() -> None:
    lm = tiny(arch=replace(ARCH, experts=replace(SOFTMAX, shared=12, dense=(0,))))
    net, d = lm.network, ARCH.width
    every = sum(p.numel() for p in net.parameters())
    assert net.idle == (SOFTMAX.count - SOFTMAX.chosen) * 3 * d * SOFTMAX.width
    outside = net.embed.weight.numel() + net.head.weight.numel() + d  # type: ignore[union-attr]
    assert lm.layer_weights == (every - net.idle - outside) // ARCH.layers
    assert tiny().network.idle == 0


def test_layers_are_mixed_or_dense() -> None:
    lm = tiny(arch=replace(ARCH, experts=replace(SOFTMAX, dense=(1,))))
    first, second = lm.network.blocks
    assert isinstance(first.mixture, Mixture)
    assert second.mixture is None
    assert not hasattr(first, "gate_up")
    every = torch.ones(1, 9, dtype=torch.bool)
    hidden = torch.randn(1, 9, ARCH.width, dtype=torch.float64)
    rotary = lm.network.rotate_rows(gather(every, every))
    for block in (first, second):
        assert block.qkv(hidden, rotary)[0].shape == (1, 9, 4, 8)
        assert block.mlp(hidden).shape == hidden.shape


def test_graphs_hold_no_layers_that_wait() -> None:
    """On a CPU no mixture has a grouped kernel, so that the layers would wait for the device."""
    assert tiny(arch=replace(ARCH, experts=SOFTMAX)).network.waits
    assert not tiny().network.waits
    with mock.patch.object(Mixture, "grouped", True):
        assert not tiny(arch=replace(ARCH, experts=SOFTMAX)).network.waits


def right(x: Tensor, weight: Tensor, offs: Tensor) -> Tensor:
    begins = [0, *offs.tolist()[:-1]]
    return torch.cat([x[a:b] @ w for a, b, w in zip(begins, offs.tolist(), weight, strict=True)])


def unsupported(x: Tensor, weight: Tensor, offs: Tensor) -> Tensor:
    raise RuntimeError("grouped gemm is not supported here")


@pytest.mark.parametrize(
    ("capability", "product", "has"),
    [
        ((9, 0), right, True),
        ((10, 0), right, True),
        ((8, 6), right, False),
        ((9, 0), None, False),
        ((9, 0), unsupported, False),
        ((9, 0), lambda x, weight, offs: right(x, weight.flip(0), offs), False),
        ((9, 0), lambda x, weight: x, False),
    ],
)
def test_the_grouped_kernel_is_used_where_it_is_and_is_right(
    monkeypatch: pytest.MonkeyPatch, capability: Any, product: Any, has: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(made, "_grouped", lambda: product)
    assert made._has_kernel.__wrapped__(torch.device("cpu")) == has


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"chosen": 9}, ["8 experts", "9"]),
        ({"groups": 3}, ["8 experts", "3 groups"]),
        ({"groups": 8}, ["8 experts", "8 groups"]),
        ({"groups": 4, "kept": 5}, ["4 groups", "keeps 5"]),
        ({"groups": 4, "kept": 1}, ["keeps 1", "3 experts"]),
    ],
)
def test_numbers_that_do_not_fit_each_other(change: dict[str, int], named: list[str]) -> None:
    with refuses(ModelError, *named):
        replace(SOFTMAX, **change)
