"""One checkpoint of each family, in the layout of the published ones: every policy, every cache, and the laws of block
models, on its own layers. What all of them share is tested at length on one small transformer (``test_matrix``,
``test_blocks``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

import gemma
import unmask
from helpers import (
    AHEAD,
    BLOCK_CACHES,
    BLOCK_POLICIES,
    CACHES,
    SIZED,
    Request,
    Row,
    assert_same,
    decode,
    forward,
)
from pairwise import combined
from unmask import registry
from unmask.models.denoiser import Denoiser
from unmask.models.weights import FAMILIES, Checkpoint

CHECKPOINTS = Path(__file__).parent / "golden" / "blocks" / "checkpoints"
BLOCK = 4
BLOCKS = ["sdar-rand", "sdar-moe-rand", "llada2-rand", "llada21-rand", "fastdllm-v2-rand", "stable-diffcoder-rand"]
FULL = ["llada-moe-rand", "rnd1-rand"]
GEMMA = "diffusion-gemma-rand"
LIMIT, EOS = 62, 57  # so that the small verifier knows all ids, and texts end
REQUESTS = [
    Request(1, [15, 6, 7], 9, seed=3),
    Request(2, [9, 3, 44, 23, 8, 11, 7], 5, seed=4, ignore_eos=True),
]


@cache
def model(name: str, dtype: str = "float64", block: int | None = BLOCK) -> Denoiser:
    """A checkpoint whose blocks, if it has any, have so many positions."""
    lm = unmask.load(CHECKPOINTS / name, device="cpu", dtype=dtype, block_length=block if name in BLOCKS else None)
    return Denoiser(lm.denoiser.network, replace(lm.denoiser.spec, limit=LIMIT, eos=(EOS,)))


def first(specs: list[str]) -> dict[str, str]:
    """The first variant of each policy or cache, by its name."""
    return {spec.partition("(")[0]: spec for spec in reversed(specs)}


POLICY = first(AHEAD) | first(SIZED) | first(BLOCK_POLICIES)
CACHE = first(CACHES) | first(BLOCK_CACHES)


def possible(policy: str, family: str, kept: str, temperature: float, single: int) -> bool:
    kind = "block" if family in BLOCKS else "full"
    ahead = policy.startswith("ahead") and (kind == "full" or model(family).spec.shift)
    return kind in registry.cache(kept).attention and not ahead


@combined(
    possible,
    apart=("policy", "kept", "temperature", "single"),
    policy=POLICY,
    family=[*BLOCKS, *FULL],
    kept=CACHE,
    temperature=[0.0, 0.9],
    single=range(2),
)
def test_a_row_is_the_same_in_any_batch(policy: str, family: str, kept: str, temperature: float, single: int) -> None:
    """In float32, experts and all, one of the rows alone; ``blockwise`` commits what ``none`` does."""
    own = model(family, "float32")
    given = [replace(request, temperature=temperature) for request in REQUESTS]
    found = decode(own, policy, kept, given, batch_size=2)
    alone = given[single]
    assert_same({alone.row: found[alone.row]}, decode(own, policy, kept, [alone]))
    if kept == "blockwise":
        plain = decode(own, policy, "none", given)
        assert {row: one.commits for row, one in plain.items()} == {row: one.commits for row, one in found.items()}


def with_blocks(name: str, size: int | None) -> Denoiser:
    """A family's network, its blocks of another length; the last one as long as what was asked for."""
    own = model(name)
    return Denoiser(own.network, replace(own.spec, block=size, whole=False))


@pytest.mark.parametrize("family", BLOCKS)
def test_blocks_as_long_as_the_canvas_are_full_attention(family: str) -> None:
    blocks, full = with_blocks(family, 64), with_blocks(family, None)
    for policy in ("threshold(tau=0.4,block_length=none)", "vanilla(block_length=none)"):
        assert_same(decode(blocks, policy, "none", REQUESTS), decode(full, policy, "none", REQUESTS))


@pytest.mark.parametrize("family", BLOCKS)
@pytest.mark.parametrize("kept", ["none", "blockwise"])
def test_blocks_of_one_are_autoregressive_decoding(family: str, kept: str) -> None:
    """One token after the other, each the likeliest of a plain pass of the same weights under a causal mask; of a
    shifted model at the token before, of the others at a mask behind the text.
    """
    own, text = with_blocks(family, 1), [15, 6, 7]
    row = decode(own, "vanilla", kept, [Request(0, text, 8, ignore_eos=True)])[0]
    while len(text) < 11:
        ids = text if own.spec.shift else [*text, own.spec.mask]
        at = torch.arange(len(ids))
        logits = forward(own, ids, at[None, None] <= at[None, :, None])[-1]
        logits[own.spec.mask] = -torch.inf
        text.append(int(logits[:LIMIT].argmax()))
    assert row.tokens == text
    assert row.nfe == 8


@pytest.mark.parametrize("family", BLOCKS)
def test_editing_nothing_is_the_policy_alone_and_blockwise_is_exact(family: str) -> None:
    for temperature in (0.0, 0.9):
        given = [replace(request, temperature=temperature) for request in REQUESTS]
        alone = decode(model(family), "threshold(tau=0.4)", "none", given)
        for post, tau in ((0, 2.0), (3, 2.0), (3, 0.3)):
            policy = f"edit(threshold(tau=0.4),tau_edit={tau},max_post_steps={post})"
            plain, kept = (decode(model(family), policy, name, given) for name in ("none", "blockwise"))
            for row, one in plain.items():
                assert kept[row].commits == one.commits
                if tau > 1 and not (post and temperature):  # a forward pass more has other noise
                    assert [commit for commit in one.commits if commit] == alone[row].commits


def ended(own: Denoiser, decoded: Callable[[Denoiser, int, bool], Any], at: int) -> Denoiser:
    """The same model, whose end of text is a token that it generates at some position of a response."""
    tokens = decoded(own, 16, True)
    place = next(i for i in range(at, 16) if tokens[i] not in tokens[:i])
    return type(own)(own.network, replace(own.spec, eos=(tokens[place],)))


@pytest.mark.parametrize("family", BLOCKS)
def test_a_longer_response_than_needed_costs_nothing(family: str) -> None:
    """Where a text ends, the blocks behind it have never been in the input."""

    def row(own: Denoiser, length: int, ignore: bool = False) -> Row:
        return decode(own, "threshold(tau=0.4)", "blockwise", [Request(0, [15, 6, 7], length, ignore_eos=ignore)])[0]

    own = ended(model(family), lambda *given: row(*given).tokens[3:], 3)
    short, long = row(own, 20), row(own, 50)
    assert own.spec.eos[0] in short.tokens[3:17]
    assert short.commits == long.commits
    assert short.work == long.work


@pytest.mark.parametrize("kept", ["none", "blockwise"])
def test_a_longer_response_than_needed_costs_nothing_in_canvases(kept: str) -> None:
    def outcome(own: Any, length: int, ignore: bool = False) -> Any:
        request = gemma.request(0, [5, 6, 7], length, "renoise(entropy_bound=2,steps=6,confidence=0.5)", kept)
        return gemma.decode(own, [replace(request, params=replace(request.params, ignore_eos=ignore))])[0]

    own = ended(gemma.denoiser(), lambda *given: outcome(*given).tokens, 3)
    short, long = outcome(own, 20), outcome(own, 80)
    assert short.finish_reason == long.finish_reason == "eos"
    assert (short.tokens, short.nfe, short.positions) == (long.tokens[:20], long.nfe, long.positions)


def test_every_family_is_here() -> None:
    """Of those that have a golden set of their own elsewhere (LLaDA, Dream), ``test_golden``."""
    names = [*BLOCKS, *FULL, GEMMA]
    found = {Checkpoint.find(CHECKPOINTS / name).config["architectures"][0] for name in names}
    assert found == {own.architectures[0] for own in FAMILIES} - {"LLaDAModelLM", "DreamModel"}
