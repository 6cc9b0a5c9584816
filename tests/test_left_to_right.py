"""Left to right, and the cache that keeps what lies behind its window."""

from __future__ import annotations

import pytest

from helpers import Request, Row, decode, tiny, trail

REQUESTS = [Request(0, [5, 6, 7], 12, ignore_eos=True), Request(1, [4], 9), Request(2, [9, 8, 7, 6], 14)]


def rows(policy: str, cache: str = "none", shift: bool = False) -> dict[int, Row]:
    return decode(tiny(shift), policy, cache, REQUESTS)


@pytest.mark.parametrize("k", [1, 3])
def test_masks_go_from_the_left(k: int) -> None:
    row = rows(f"left_to_right(k={k})")[0]
    assert [p for commits in row.commits for p, _ in sorted(commits)] == list(range(3, 15))
    assert {len(commits) for commits in row.commits} == {k}


def test_a_lookahead_past_the_end_changes_nothing() -> None:
    wide, none = rows("left_to_right(k=2,lookahead=99)"), rows("left_to_right(k=2)")
    assert [row.commits for row in wide.values()] == [row.commits for row in none.values()]


def test_positions_behind_the_lookahead_leave_the_input() -> None:
    for before, _, event in trail(tiny(), "left_to_right(k=3,lookahead=4)", "none", REQUESTS[0]):
        assert float(event.work[0]) == min(int(before.canvas.frontier[0]) + 4, 15)


def test_only_the_window_and_what_follows_is_computed() -> None:
    """Counted from the frontier of the forward before, and everything in the first forward."""
    frontiers = []
    for before, _, event in trail(tiny(), "left_to_right(k=2,lookahead=4)", "trailing(window=3)", REQUESTS[0]):
        now = int(before.canvas.frontier[0])
        first = frontiers[-1] - 3 + 1 if frontiers else 0
        assert float(event.work[0]) == min(now + 4, 15) - first
        frontiers.append(now)
    assert len(frontiers) == 6
