"""4x4 sudoku: every row, column and 2x2 box holds 1, 2, 3, 4; any grid that keeps the clues counts."""

from __future__ import annotations

import itertools
import random

from unmask.tasks.base import Family, Problem, canonical_key

NAME = "sudoku"
MIN_BLANKS, MAX_BLANKS = 4, 10
_INTROS = (
    "Solve the sudoku:",
    "Fill in the blank cells of this sudoku:",
    "Complete the grid by the sudoku rules:",
    "Sudoku, 0 is a blank cell:",
)


def _all_grids() -> list[str]:
    """The 288 complete grids, each as 16 digits in reading order."""
    grids = []
    rows = list(itertools.permutations("1234"))
    for picked in itertools.product(rows, repeat=2):
        if any(a == b for a, b in zip(*picked, strict=True)) or not _boxes_fit(*picked):
            continue
        for lower in itertools.product(rows, repeat=2):
            grid = "".join("".join(row) for row in (*picked, *lower))
            if is_solution(grid):
                grids.append(grid)
    return grids


def _boxes_fit(upper: tuple[str, ...], lower: tuple[str, ...]) -> bool:
    return len({*upper[:2], *lower[:2]}) == 4 and len({*upper[2:], *lower[2:]}) == 4


def is_solution(grid: str) -> bool:
    """Whether 16 digits obey the three rules."""
    if len(grid) != 16:
        return False
    rows = [grid[i : i + 4] for i in range(0, 16, 4)]
    columns = [grid[i::4] for i in range(4)]
    boxes = [grid[i : i + 2] + grid[i + 4 : i + 6] for i in (0, 2, 8, 10)]
    return all(set(group) == set("1234") for group in (*rows, *columns, *boxes))


def _lines(grid: str) -> str:
    return "\n".join(grid[i : i + 4] for i in range(0, 16, 4))


GRIDS = tuple(_all_grids())


def generate(rng: random.Random) -> Problem:
    """A complete grid with 4 to 10 of its cells blanked (written 0)."""
    solution = rng.choice(GRIDS)
    blanks = set(rng.sample(range(16), rng.randint(MIN_BLANKS, MAX_BLANKS)))
    clues = "".join("0" if i in blanks else digit for i, digit in enumerate(solution))
    prompt = f"{rng.choice(_INTROS)}\n{_lines(clues)}"
    return Problem(NAME, prompt, _lines(solution), canonical_key(clues), {"clues": clues, "blanks": len(blanks)})


def check(problem: Problem, text: str) -> bool:
    """Four lines of four digits that obey the rules and keep every clue."""
    lines = [line.strip() for line in text.strip().splitlines()]
    if [len(line) for line in lines] != [4, 4, 4, 4]:
        return False
    grid = "".join(lines)
    kept = all(clue in ("0", digit) for clue, digit in zip(problem.meta["clues"], grid, strict=True))
    return kept and is_solution(grid)


FAMILY = Family(NAME, "4x4 sudoku with 4 to 10 blank cells", generate, check)
