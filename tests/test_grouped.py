"""Grouped-query attention with a mask, as CUDA is given it, beside attention with the key heads repeated."""

from __future__ import annotations

import pytest
import torch

from unmask.models.attention import _grouped, attention


@pytest.mark.parametrize("each", [False, True], ids=["one mask", "a mask for each query"])
@pytest.mark.parametrize(("heads", "groups"), [(4, 2), (6, 1), (3, 3)])
def test_shared_key_heads_with_a_mask(heads: int, groups: int, each: bool) -> None:
    draw = torch.Generator().manual_seed(heads)
    wide = torch.randn(2, 5, heads + groups, 8, generator=draw, dtype=torch.float64)
    query, key = wide[:, :, :heads], torch.randn(2, 9, groups, 8, generator=draw, dtype=torch.float64)
    value = torch.randn(2, 9, groups, 8, generator=draw, dtype=torch.float64)
    keys = torch.rand((2, 5, 9) if each else (2, 9), generator=draw) < 0.7
    keys[..., 0] = True
    repeated = (part.repeat_interleave(heads // groups, 2) for part in (key, value))
    expected = attention(query, *repeated, keys)
    torch.testing.assert_close(_grouped(query, key, value, keys), expected)
