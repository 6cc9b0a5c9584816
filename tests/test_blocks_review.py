"""What only meets in block models: the surplus of the last block, editing inside other policies, likelihoods."""

from __future__ import annotations

import pytest

from helpers import Request, assert_same, decode, tiny

pytestmark = pytest.mark.usefixtures("many_tiles")


@pytest.mark.parametrize("policy", ["wino(tau_in=0.1,tau_out=0.5)", "ahead(wino(tau_in=0.1,tau_out=0.5))"])
@pytest.mark.parametrize("kept", ["none", "blockwise"])
def test_probes_of_positions_that_fill_the_last_block_have_columns(policy: str, kept: str) -> None:
    """A response of one token is probed in four positions; it is the same beside a row that has room for more."""
    model, long = tiny(block=4, whole=True), Request(9, [2] * 4, 30, ignore_eos=True)
    for token in range(6):
        short = Request(0, [3, 1, 4, token], 1, ignore_eos=True)
        alone = decode(model, policy, kept, [short])
        assert_same({0: decode(model, policy, kept, [short, long])[0]}, alone)
