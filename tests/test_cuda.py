"""On a GPU: every policy under every cache, golden traces, rows alone and in batches, threads, graphs, drafts, experts,
weights in few bits, constraints.

Skipped where there is none. ``UNMASK_TEST_DEVICE=cpu`` runs them on another device, to see that the tests are right.
"""

from __future__ import annotations

import importlib.util
import os
import re
import threading
from copy import deepcopy
from functools import cache
from typing import Any

import pytest
import torch

import test_experts as experts
import test_golden as golden
import test_golden_blocks as blocks
import test_golden_newer as newer
import unmask
from helpers import CACHES, EOS, MASK, POLICIES, SPEC, Request, Row, assert_same, decode, singly, tiny
from unmask import registry
from unmask.models import computing, quantised
from unmask.models.denoiser import Denoiser
from unmask.models.experts import Experts
from unmask.models.graphs import Cuda, Graphs, Rerun
from unmask.models.quantised import KINDS, per_token
from unmask.speculative.model import load_causal
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


def _few(traces: Any) -> list[Any]:
    """Some cases of each method of a set."""
    seen: dict[tuple[str, str], int] = {}
    found = []
    for case in traces.CASES:
        key = (case.group, case.method)
        seen[key] = seen.get(key, 0) + 1
        if seen[key] <= GOLDEN_CASES:
            found.append(pytest.param(traces, case, id=f"{traces.__name__}-{case.group}-{case.name}"))
    return found


@cache
def golden_model(checkpoint: str, block: int | None = None, root: Any = golden.ROOT) -> Denoiser:
    return unmask.load(root / "checkpoints" / checkpoint, device=DEVICE, dtype="float32", block_length=block).denoiser


def _deviates(traces: Any, case: Any) -> bool:
    if traces is newer:
        return any(d["method"] == case.method and newer.CONDITIONS[d["condition"]](case) for d in newer.DEVIATIONS)
    return traces is golden and bool(golden.excuses(case))


@pytest.mark.parametrize(("traces", "case"), [*_few(blocks), *_few(newer), *_few(golden)])
def test_golden_trace(traces: Any, case: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """As published, in float32, but for what is known to deviate."""
    monkeypatch.setattr(golden, "model", golden_model)
    monkeypatch.setattr(blocks, "model", lambda name, block: golden_model(name, block, blocks.ROOT))
    monkeypatch.setattr(traces, "outcome", lambda case: traces.play([case])[case])
    problem = traces.outcome(case).problem(case) if traces is golden else traces.problem(case)
    if problem and _deviates(traces, case):
        pytest.skip("a known deviation")
    assert not problem


@cache
def asked() -> list[str]:
    return [problem.prompt for name in ("word_problem", "record", "sudoku") for problem in problems(name, "test", 3)]


@pytest.mark.parametrize("drafter", [None, *registry.table("drafter")])
def test_drafts_change_no_text(drafter: str | None) -> None:
    """What the target says on the CPU without drafts, token for token."""
    here, there = (load_causal(device=device, dtype="float32") for device in (DEVICE, "cpu"))
    assert here.text is not None
    prompts = [here.text.encode(prompt) for prompt in asked()]
    found = here.generate(prompts, 40, drafter, batch_size=4)
    assert [r.tokens for r in found] == [r.tokens for r in there.generate(prompts, 40, None, batch_size=4)]
    assert sum(r.stats.accepted for r in found) > 0 or drafter is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("triton", [True, False])
@pytest.mark.parametrize("rows", [1, 16, 17, 40, 200])
@pytest.mark.parametrize("sizes", [(48, 64), (104, 640), (136, 80)])
@pytest.mark.parametrize("kind", KINDS)
def test_products_of_few_bits(
    kind: str, rows: int, sizes: tuple[int, int], triton: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of the weights that are meant and of the inputs as they are rounded, whatever rows a kernel wants."""
    if not triton:
        monkeypatch.setattr(computing, "uses_triton", lambda _: False)
        monkeypatch.setattr(quantised, "uses_triton", lambda _: False)
    draw = torch.Generator().manual_seed(rows)
    weight, x = torch.randn(sizes, generator=draw), torch.randn(rows, sizes[1], generator=draw).to(dtype)
    stored, bias = KINDS[kind].of(weight), torch.randn(sizes[0], generator=draw).to(dtype)
    layer = stored.layer(torch.nn.Parameter(bias.to(DEVICE), requires_grad=False), dtype, torch.device(DEVICE))
    values, size = per_token(x)
    meant = values * size if kind == "int8" else x
    expected = torch.nn.functional.linear(meant.double(), stored.dense().double(), bias.double())
    for begin, out in ((0, layer(x.to(DEVICE))), (13, layer.part(x.to(DEVICE), 13))):
        wanted = expected[:, begin:]
        error = float((out.double().cpu() - wanted).norm() / wanted.norm())
        assert error < (1e-5 if dtype == torch.float32 else 1e-2)


def test_kernels_of_few_bits_are_used() -> None:
    """Where Triton is found: a device on which its products are wrong does without, and says so."""
    found = importlib.util.find_spec("triton") is not None and DEVICE == "cuda"
    assert computing.uses_triton(torch.device(DEVICE)) == found
    assert ("Triton" in computing.described("int8", torch.device(DEVICE))) == found


@pytest.mark.parametrize("kind", ["int8", "int4", "int8+head", "int4+head"])
def test_weights_of_few_bits(kind: str) -> None:
    """The answers of the same weights on the CPU."""
    here, there = (unmask.load(device=device, dtype="float32", quantize=kind) for device in (DEVICE, "cpu"))
    found, expected = (lm.generate(asked(), 48, "threshold(tau=0.9)", "dllm(kp=2,kr=1)") for lm in (here, there))
    assert [r.tokens for r in found] == [r.tokens for r in expected]


@pytest.mark.parametrize("count", [1, 5, 300])
@pytest.mark.parametrize(
    "kind",
    [
        Experts(count=8, chosen=3, width=32, shared=16),
        Experts(count=12, chosen=3, width=16, sigmoid=True, normalised=True, groups=4, kept=2, offset="choice"),
        Experts(count=8, chosen=1, width=20),  # whose sizes the grouped kernel does not take
    ],
)
def test_experts(kind: Experts, count: int) -> None:
    """In bfloat16 as in float64 token by token on the CPU, by the grouped kernel where there is one."""
    plain = experts.mixture(kind, torch.bfloat16)
    module, x = deepcopy(plain).to(DEVICE), experts.inputs(count, torch.bfloat16)
    assert module.grouped == (DEVICE == "cuda" and not kind.width % 8 and torch.cuda.get_device_capability() >= (9, 0))
    found, expected = module(x.to(DEVICE)).double().cpu(), plain.double()(x.double())
    alike = module.router(x.to(DEVICE))[0].cpu().sort(-1).values == plain.router(x.double())[0].sort(-1).values
    same = alike.all(-1)  # a tie may fall to another expert
    assert same.float().mean() > 0.9
    assert float((found - expected)[same].norm() / expected[same].norm()) < 2e-2


@pytest.mark.parametrize("policy", ["vanilla", "threshold(tau=0.2)", FIRST["slowfast"], FIRST["lopa"]])
def test_constraints(policy: str) -> None:
    """What the CPU writes, and it matches."""
    pattern = r'\{"who":"[A-Z][a-z]+ [A-Z][a-z]+","years":\d\d\}'
    prompts = ["Fill the record: who, years", "Amy has 3 apples."]
    here, there = (unmask.load(device=device, dtype="float32") for device in (DEVICE, "cpu"))
    found, expected = (lm.generate(prompts, 32, policy, regex=pattern) for lm in (here, there))
    assert [r.text for r in found] == [r.text for r in expected]
    assert all(re.fullmatch(pattern, r.text) for r in found)


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
