"""The recipe of docs/results/every.md: what is searched, and what is chosen of it."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from test_bench import RUN, line
from unmask import registry
from unmask.measure.report import overall
from unmask.measure.summary import Figures, summarise, tallies

SCRIPT = Path(__file__).parents[1] / "recipes" / "results" / "every.py"
OTHERS = {"ahead", "assd", "renoise"}  # for models of other kinds


@pytest.fixture(scope="module")
def recipe() -> Iterator[dict[str, Any]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [*sys.path])  # the script adds its neighbours
        yield runpy.run_path(str(SCRIPT))
    for name in ("policies", "method_pages"):
        sys.modules.pop(name, None)


def test_every_policy_is_searched(recipe: dict[str, Any]) -> None:
    assert set(recipe["POLICIES"]) == set(registry.POLICIES) - OTHERS
    for name, settings in recipe["POLICIES"].items():
        assert all(str(registry.policy(setting)).partition("(")[0] == name for setting in settings)
        assert all(registry.cache(cache) for cache in recipe["OWN"].get(name, recipe["CACHES"]))


def found(*settings: tuple[str, str, list[int], float]) -> list[Figures]:
    """Figures of settings: policy, cache, which answers are right, seconds."""
    vanilla = line("vanilla", "none", 0, [1, 1, 1, 1], [8] * 4, [8] * 4, 8.0)
    lines = [line(policy, cache, 0, right, [8] * 4, [4] * 4, seconds) for policy, cache, right, seconds in settings]
    return overall(summarise(tallies([RUN, vanilla, *lines])))


ALL, ONE_LOST, TWO_LOST = [1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 0, 0]


@pytest.mark.parametrize(
    ("settings", "chosen"),
    [
        ([("factor", "none", ALL, 2.0), ("factor(f=0.1)", "none", ONE_LOST, 1.0)], "factor(f=0.1)"),
        ([("factor", "none", ALL, 2.0), ("factor(f=0.1)", "none", TWO_LOST, 1.0)], "factor"),
        ([("factor", "none", TWO_LOST, 2.0), ("factor(f=0.1)", "none", [0, 0, 0, 1], 1.0)], "factor"),
    ],
)
def test_the_best_is_the_fastest_that_loses_little(recipe: dict[str, Any], settings: list[Any], chosen: str) -> None:
    assert [f.setting.policy for f in recipe["best"](found(*settings))] == ["vanilla", chosen]


def test_a_cache_that_neither_saves_time_nor_answers_is_not_tried_further(recipe: dict[str, Any]) -> None:
    settings = [
        ("factor", "none", ONE_LOST, 2.0),
        ("factor", "dual", ONE_LOST, 1.0),
        ("factor", "prefix", ONE_LOST, 3.0),
        ("factor", "dllm", ALL, 4.0),
    ]
    kept = [(f.setting.policy, f.setting.cache) for f in recipe["promising"](found(*settings))]
    assert kept == [("vanilla", "none"), ("factor", "none"), ("factor", "dual"), ("factor", "dllm")]
