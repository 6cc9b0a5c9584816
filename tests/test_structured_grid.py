"""Everything that is generated is valid: policies x caches x temperatures x weights, with many constraints in a batch.

``UNMASK_ALL=1 pytest tests/test_structured_grid.py`` decodes all combinations with all thirty constraints.
"""

from __future__ import annotations

import pytest

from pairwise import FULL, combined
from refusals import refuses
from structured import CASES, LENGTH, model, valid
from unmask import RequestError, SamplingParams, registry

CACHES = ("none", "dual", "dllm(kp=4,kr=2)", "blockwise")
WEIGHTS = ("bundled", "random", "blocks", "random blocks")
PROMPT = "Fill the record: name, age, pet"
_TOGETHER = 2  # constraints in a batch of the spread
_NAMES = list(CASES)
_BLOCKS_ALONE = {"ahead"}
_REFUSED = {  # they commit whole canvases, or change the length
    name for name in registry.POLICIES if registry.policy(name).renoises or registry.policy(name).resizes
}
_KEEPS = {"assd"}  # the distribution of the model's own text, which a constraint would change
_POLICIES = tuple(name for name in registry.POLICIES if name not in _REFUSED | _KEEPS)


def possible(policy, cache, temperature, weights):
    """What is for full attention or for blocks alone; of the spread one of the two, in turn, where both are."""
    kinds = [kind for kind in ("full", "block") if kind in registry.cache(cache).attention]
    kinds = ["block"] if policy in _BLOCKS_ALONE and "block" in kinds else kinds
    if not FULL and len(kinds) > 1:
        kinds = [kinds[(_POLICIES.index(policy) + CACHES.index(cache)) % 2]]
    return ("block" if "blocks" in weights else "full") in kinds and (policy not in _BLOCKS_ALONE or "block" in kinds)


@pytest.mark.slow
@combined(
    possible,
    apart=("policy", "cache", "temperature", "weights"),
    policy=_POLICIES,
    cache=CACHES,
    temperature=(0.0, 1.0),
    weights=WEIGHTS,
)
def test_every_output_is_valid(policy, cache, temperature, weights):
    first = 2 * _POLICIES.index(policy) + _TOGETHER * CACHES.index(cache)
    names = _NAMES if FULL else [_NAMES[(first + i) % len(_NAMES)] for i in range(_TOGETHER)]
    params = [SamplingParams(temperature=temperature, seed=i, **CASES[name]) for i, name in enumerate(names)]
    results = model(weights).generate([PROMPT] * len(names), LENGTH, policy, cache, params=params)
    for name, result in zip(names, results, strict=True):
        assert result.error is None, (name, result.error)
        assert valid(CASES[name], result.text), (name, result.text)


def test_there_are_thirty_constraints():
    assert len(CASES) == 30


def test_what_is_left_out_is_refused():
    """Policies for models that denoise uniform noise, where a constraint is refused too; see test_renoise."""
    assert {"renoise", "flexible", "daedal"} == _REFUSED
    for policy in _REFUSED:
        with refuses(RequestError, policy):
            model("bundled").generate(PROMPT, LENGTH, policy, "none", regex="a*")
    for policy in _BLOCKS_ALONE:
        with refuses(RequestError, policy):
            model("bundled").generate(PROMPT, LENGTH, policy, "none", regex="a*")
