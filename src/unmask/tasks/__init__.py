"""Small problems whose answers a program can check, with splits that are disjoint by construction.

>>> from unmask.tasks import FAMILIES, problems
>>> problem = problems("sudoku", "test", 1)[0]
>>> FAMILIES["sudoku"].check(problem, problem.answer)
True
"""

from __future__ import annotations

from unmask.tasks import multi, record, sudoku, waiting_line, word_problem
from unmask.tasks.base import SPLITS, Family, Problem, draw, split_of

__all__ = ["FAMILIES", "SPLITS", "Family", "Problem", "problems", "split_of"]

FAMILIES: dict[str, Family] = {
    module.NAME: module.FAMILY for module in (word_problem, multi, waiting_line, sudoku, record)
}


def problems(family: str | Family, split: str, n: int, seed: int = 0) -> list[Problem]:
    """``n`` distinct problems of one family and split, the same ones for the same arguments."""
    if isinstance(family, str):
        if family not in FAMILIES:
            raise ValueError(f"unknown family {family!r}: expected one of {', '.join(FAMILIES)}")
        family = FAMILIES[family]
    return draw(family, split, n, seed)
