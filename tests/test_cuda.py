"""On a GPU: every policy under every cache, golden traces, rows alone and in batches, threads, graphs.

Skipped where there is none. ``UNMASK_TEST_DEVICE=cpu`` runs them on another device, to see that the tests are right.
"""

from __future__ import annotations

import os
import threading
from copy import deepcopy
from functools import cache
from typing import Any

import pytest
import torch

import test_golden as golden
import unmask
from helpers import CACHES, EOS, MASK, POLICIES, SPEC, Request, Row, assert_same, decode, singly, tiny
from unmask import registry
from unmask.models.denoiser import Denoiser
from unmask.models.graphs import Cuda, Graphs, Rerun
from unmask.tasks import problems

DEVICE = os.environ.get("UNMASK_TEST_DEVICE", "cuda")
if DEVICE == "cuda" and not torch.cuda.is_available():
    pytest.skip("needs a GPU", allow_module_level=True)
REQUESTS = [
    Request(10, [1, 2, 3], 12),
    Request(11, [5, 6, 7, 8, 9, 10, 11], 1),
    Request(12, [4], 18, seed=3),
    Request(13, [9, 3, 2, 4, 5], 7, ignore_eos=True),
    Request(14, [20, 21], 14),
]
SAMPLED = [
    Request(20, [1, 2, 3], 9, temperature=1.2, top_p=0.95, seed=1),
    Request(21, [5, 6, 7, 8, 9, 10], 13, temperature=1.5, top_k=5, seed=2, ignore_eos=True),
    Request(22, [4], 6, seed=1),
]
PAIRS = [(p, c, i, j) for i, p in enumerate(POLICIES) for j, c in enumerate(CACHES)]
ONE_EACH = {spec.partition("(")[0]: spec for spec in CACHES}
FIRST = {spec.partition("(")[0]: spec for spec in reversed(POLICIES)}
GOLDEN_CASES = 4  # of each method and group


@cache
def on_device(shift: bool, dtype: torch.dtype) -> Denoiser:
    """The tiny random model, on the device."""
    plain = tiny(shift, dtype=dtype)
    return Denoiser(deepcopy(plain.network).to(DEVICE), plain.spec)


@pytest.mark.parametrize("kept", ["none", "dual", "dllm(kp=3,kr=2,rho=0.25)"])
@pytest.mark.parametrize("policy", FIRST.values())
def test_as_on_the_cpu(policy: str, kept: str) -> None:
    """In float64 the same commits in the same forward passes, with the same noise."""
    for requests in (REQUESTS, SAMPLED):
        got = decode(on_device(False, torch.float64), policy, kept, requests)
        assert_same(got, decode(tiny(), policy, kept, requests))


@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("kept", ONE_EACH.values())
@pytest.mark.parametrize("policy", FIRST.values())
def test_a_row_does_not_see_its_batch(policy: str, kept: str, shift: bool) -> None:
    model = on_device(shift, torch.float64)
    assert_same(decode(model, policy, kept, REQUESTS, batch_size=3), singly(model, policy, kept, REQUESTS))


@pytest.mark.parametrize("kept", ["none", "dual", "dllm(kp=2,kr=1)"])
def test_the_bundled_model_does_not_see_its_batch(kept: str) -> None:
    """In float32, whose last bits depend on the batch."""
    lm = unmask.load(device=DEVICE, dtype="float32")
    prompts = [problem.prompt for name in ("word_problem", "record") for problem in problems(name, "test", 4)]
    policy = "slowfast(tau_high=0.998,window=1,suffix=cached,block_length=32)"
    together = lm.generate(prompts, 64, policy, kept)
    assert [r.text for r in together] == [lm.generate(p, 64, policy, kept)[0].text for p in prompts]


def _golden_cases() -> list[Any]:
    seen: dict[tuple[str, str], int] = {}
    found = []
    for case in golden.CASES:
        key = (case.group, case.method)
        seen[key] = seen.get(key, 0) + 1
        if seen[key] <= GOLDEN_CASES:
            found.append(case)
    return found


@cache
def golden_model(checkpoint: str) -> Denoiser:
    return unmask.load(golden.ROOT / "checkpoints" / checkpoint, device=DEVICE, dtype="float32").denoiser


@pytest.mark.parametrize("case", _golden_cases(), ids=lambda c: f"{c.group}-{c.name}")
def test_golden_trace(case: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """As published, in float32, but for what is known to deviate."""
    monkeypatch.setattr(golden, "model", golden_model)
    problem = golden.play([case])[case].problem(case)
    if problem and golden.excuses(case):
        pytest.skip("a known deviation")
    assert not problem


@pytest.mark.parametrize("kept", ["none", "dual", "dllm(kp=3,kr=2,rho=0.25)"])
def test_threads(kept: str) -> None:
    """Several decode with one model at a time; each gets what it gets alone."""
    model, found, failed = on_device(False, torch.float64), dict[int, Row](), list[Exception]()
    expected = singly(model, "threshold(tau=0.4,block_length=4)", kept, REQUESTS)

    def work(request: Request) -> None:
        try:
            found.update(decode(model, "threshold(tau=0.4,block_length=4)", kept, [request]))
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(r,)) for r in REQUESTS]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert_same(found, expected)


@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("kept", CACHES)
def test_graphs_change_nothing(kept: str, shift: bool) -> None:
    """Also where several rectangles share a forward pass, and with graphs of former runs about."""
    plain = on_device(shift, torch.float64)
    model = Denoiser(plain.network, plain.spec)
    model.graphs = graphs = Graphs(Cuda() if DEVICE == "cuda" else Rerun())
    for policy in ("threshold(tau=0.4,block_length=4)", FIRST["slowfast"], "vanilla(block_length=4)", FIRST["wino"]):
        expected = decode(plain, policy, kept, REQUESTS)
        for _ in range(2):
            assert_same(decode(model, policy, kept, REQUESTS), expected)
    assert (graphs.hits > 0) == registry.cache(kept).captures
    graphs.clear()


def test_graphs_beside_threads() -> None:
    """A graph is recorded while another thread computes."""
    plain = on_device(False, torch.float64)
    model = Denoiser(plain.network, plain.spec)
    model.graphs = Graphs(Cuda() if DEVICE == "cuda" else Rerun())
    found, failed = dict[int, Row](), list[Exception]()
    expected = singly(plain, "vanilla(block_length=4)", "dual", REQUESTS)

    def work(request: Request) -> None:
        try:
            found.update(decode(model, "vanilla(block_length=4)", "dual", [request]))
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(r,)) for r in REQUESTS]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert_same(found, expected)


def test_the_rows_are_worth_running() -> None:
    rows = decode(on_device(False, torch.float32), "vanilla(block_length=4)", "none", REQUESTS)
    assert any(EOS in row.tokens for row in rows.values())


@pytest.mark.parametrize(
    ("policy", "kept", "dtype", "shift"),
    [
        pytest.param(p, c, (torch.float32, torch.bfloat16)[(i + j) % 2], bool((i + j // 2) % 2), id=f"{p}-{c}")
        for p, c, i, j in PAIRS
    ],
)
def test_every_policy_under_every_cache(policy: str, kept: str, dtype: torch.dtype, shift: bool) -> None:
    """Each pair once, precisions and shifts in turns: every step is sound, and every row ends with its masks filled."""
    requests = REQUESTS if len(policy + kept) % 2 else SAMPLED
    for request, row in zip(requests, decode(on_device(shift, dtype), policy, kept, requests).values(), strict=True):
        response = row.tokens[len(request.prompt) :]
        ends = [i for i, token in enumerate(response) if token in SPEC.eos]
        assert row.finished == 1
        assert row.tokens[: len(request.prompt)] == list(request.prompt)
        assert MASK not in (response[: ends[0] + 1] if ends and not request.ignore_eos else response)
        assert all(0 <= c <= 1 for c in row.confidence.values())
