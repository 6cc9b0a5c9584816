"""One thread, the same random examples in every run, and what shares results in one process under ``pytest -n``."""

from __future__ import annotations

import os
from collections.abc import Iterator

os.environ["TQDM_DISABLE"] = "1"  # read when tqdm is imported: what commands write to standard error is tested

import pytest
import torch
from hypothesis import HealthCheck, settings

torch.set_num_threads(1)
settings.register_profile(
    "unmask", deadline=None, derandomize=True, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("unmask")


@pytest.fixture(scope="module")
def many_tiles() -> Iterator[None]:
    """Rectangles so cheap that the small rows of tests are split among several, too."""
    from unmask.core import rows

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows, "_TILE_COST", {False: 2.0, True: 2.0})
        yield


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of one policy, or of one file where they have no policy, build on the same runs."""
    for item in items:
        policy = item.callspec.params.get("policy") if hasattr(item, "callspec") else None
        group = f"{item.path.name} {str(policy).partition('(')[0]}" if policy else item.path.name
        item.add_marker(pytest.mark.xdist_group(group))
