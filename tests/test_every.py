"""The recipe of docs/results/every.md: what is searched, and what is chosen of it."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Iterator
from dataclasses import replace
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


def found(*settings: tuple[str, str, int, int]) -> list[Figures]:
    """Figures of settings on eight problems: policy, cache, how many answers are right, forward passes of each."""

    def decoded(policy: str, cache: str, right: int, passes: int) -> dict[str, Any]:
        return line(policy, cache, 0, [1] * right + [0] * (8 - right), [8] * 8, [passes] * 8, 1.0)

    return overall(summarise(tallies([RUN, decoded("vanilla", "none", 8, 9), *(decoded(*own) for own in settings)])))


@pytest.mark.parametrize(
    ("settings", "chosen"),
    [
        ([("factor", "none", 8, 3), ("factor(f=0.1)", "none", 5, 2)], "factor(f=0.1)"),
        ([("factor", "none", 8, 3), ("factor(f=0.1)", "none", 4, 2)], "factor"),
        ([("factor", "none", 3, 3), ("factor(f=0.1)", "none", 4, 4)], "factor(f=0.1)"),
        ([("factor", "none", 4, 4), ("factor(f=0.1)", "none", 4, 3)], "factor(f=0.1)"),
        ([("factor", "elastic", 8, 2), ("factor(f=0.1)", "dual", 8, 3)], "factor(f=0.1)"),
    ],
)
def test_the_best_loses_little_and_computes_least(recipe: dict[str, Any], settings: list[Any], chosen: str) -> None:
    assert [f.setting.policy for f in recipe["best"](found(*settings))] == ["vanilla", chosen]


def test_each_cache_has_a_best_setting_that_is_tried_further(recipe: dict[str, Any]) -> None:
    settings = [
        ("factor", "none", 8, 4),
        ("factor(f=0.1)", "none", 7, 2),
        ("factor", "dual", 1, 1),
        ("factor(f=0.1)", "dual", 2, 1),
    ]
    kept = [(f.setting.policy, f.setting.cache) for f in recipe["best"](found(*settings), apart=True)]
    assert kept == [("vanilla", "none"), ("factor(f=0.1)", "none"), ("factor(f=0.1)", "dual")]


def test_what_was_not_decoded_to_the_end_is_not_chosen(recipe: dict[str, Any]) -> None:
    whole = found(("factor", "none", 8, 3))
    part = replace(found(("factor(f=0.1)", "none", 8, 2))[-1], n=4)
    assert [f.setting.policy for f in recipe["best"]([*whole, part])] == ["vanilla", "factor"]
