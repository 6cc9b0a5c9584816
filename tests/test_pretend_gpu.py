"""Every policy and every cache on a GPU that is not there: the paths of CUDA, no tensor left on the CPU, few waits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from copy import deepcopy

import pytest
import torch

from helpers import CACHES, POLICIES, SHIFT, Request, assert_same, decode, tiny
from pairwise import FULL, combined
from pretend import CUDA, Pretending, gpu, moved
from unmask.engine.scheduler import Engine
from unmask.models.denoiser import Denoiser
from unmask.models.graphs import Graphs, Rerun

REQUESTS = [
    Request(10, [1, 2, 3], 7),
    Request(12, [4], 9, seed=3, temperature=0.9, top_p=0.9),
    Request(13, [5, 6, 7, 8, 9], 6, ignore_eos=True),
]
GREEDY = [Request(10, [1, 2, 3], 9), Request(12, [4], 9, seed=3), Request(13, [5, 6, 7, 8, 9], 9, ignore_eos=True)]
PAIRS = [(policy, CACHES[i % len(CACHES)]) for i, policy in enumerate(POLICIES)]  # four of each cache at least
if FULL:
    PAIRS += [(POLICIES[(7 * i + 3) % len(POLICIES)], cache) for i, cache in enumerate(CACHES)]
FIRST = {spec.partition("(")[0]: spec for spec in reversed(POLICIES)}
MORE = {"apd": 1, "cascade": 1}  # waits of the verifier


@pytest.fixture
def waits() -> Iterator[Counter[str]]:
    with gpu() as found:
        yield found


def there(shift: bool) -> Denoiser:
    plain = tiny(shift)
    return Denoiser(moved(deepcopy(plain.network)), plain.spec)  # type: ignore[arg-type]


@combined(apart=("pair", "shift"), pair={" ".join(pair): pair for pair in PAIRS}, shift=SHIFT)
def test_the_same_as_on_the_cpu(pair: tuple[str, str], shift: bool) -> None:
    policy, kept = pair
    with gpu():
        model = there(shift)
        model.graphs = Graphs(Rerun())
        found = decode(model, policy, kept, REQUESTS)
    assert_same(found, decode(tiny(shift), policy, kept, REQUESTS))


@combined(
    apart=("policy", "kept"),
    policy=list(FIRST.values()),
    kept=["none", "dual", "dllm(kp=3,kr=2,rho=0.25)", "d2(k=4,p=0.4)", "elastic"],
)
def test_the_host_waits_twice_in_a_forward_pass(policy: str, kept: str, waits: Counter[str]) -> None:
    """Before the layers, and for the state of the rows; sending numbers does not wait either."""
    engine = Engine(there(False))
    for request in GREEDY:
        engine.add(request.to(policy, kept))
    engine.step()
    steps = 0
    while engine.busy:
        waits.clear()
        events = engine.step()
        if len(events) == 1:  # no row has ended
            steps += 1
            assert waits == Counter(tolist=2 + MORE.get(policy.partition("(")[0], 0))
    assert steps > 0 or kept != "none"


def test_tensors_left_on_the_cpu_are_noticed(waits: Counter[str]) -> None:
    here, far = torch.ones(2), torch.ones(2, device="cuda")
    assert isinstance(far, Pretending)
    assert far.device == CUDA and far.is_cuda and (far + far).is_cuda and far[0].is_cuda
    assert not here.is_cuda
    with pytest.raises(RuntimeError, match="on the CPU"):
        far + here
    with pytest.raises(RuntimeError, match="on the CPU"):
        torch.where(here > 0, far, far)
    assert torch.equal((far + here.to("cuda")).to("cpu"), 2 * here)
    assert waits["to"] == 1
