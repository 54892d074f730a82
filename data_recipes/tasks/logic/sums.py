"""Puzzles on sums in grids: magic square, survo, kakuro."""

import random
from dataclasses import dataclass
from itertools import groupby
from typing import ClassVar, Self

from typing_extensions import override

from m1.data_recipes.tasks.answers import Grid, integer_grid, picture, rows_of
from m1.data_recipes.tasks.logic.latin import (
    BLANK,
    blanks_in,
    keeps,
    latin_square,
    row_steps,
    with_blanks,
)
from m1.data_recipes.tasks.puzzle import Puzzle

_ANSWER_FORM = "Answer with the full grid: one line per row, numbers separated by spaces."


def _magic(side: int) -> Grid:
    """A magic square of 1 to side squared: the staircase for odd sides, crossings for side 4."""
    if side == 4:
        return tuple(
            tuple(
                17 - (4 * r + c + 1) if (r % 3 == 0) == (c % 3 == 0) else 4 * r + c + 1
                for c in range(4)
            )
            for r in range(4)
        )
    return tuple(
        tuple(
            side * ((r + c + 1 + side // 2) % side) + (r + 2 * c + 1) % side + 1
            for c in range(side)
        )
        for r in range(side)
    )


def _turned(rng: random.Random, grid: Grid) -> Grid:
    """One of the eight turns and reflections."""
    for _ in range(rng.randrange(4)):
        grid = tuple(zip(*grid[::-1], strict=True))
    return grid[::-1] if rng.random() < 0.5 else grid


def _lines(grid: Grid) -> list[tuple[int, ...]]:
    """Rows, columns and the two diagonals."""
    side = len(grid)
    diagonals = (
        tuple(grid[i][i] for i in range(side)),
        tuple(grid[i][side - 1 - i] for i in range(side)),
    )
    return [*grid, *zip(*grid, strict=True), *diagonals]


@dataclass(frozen=True, slots=True, kw_only=True)
class MagicSquare(Puzzle):
    """Rows, columns and diagonals have the same sum; all numbers are different."""

    SIZE: ClassVar[str] = "blank cells"
    givens: Grid
    solution: Grid

    @override
    @classmethod
    def draw(cls, rng: random.Random, difficulty: int) -> Self:
        side = 3 if difficulty <= 3 else 4 if difficulty <= 6 else 5
        factor, shift = rng.randint(1, 9), rng.randrange(50)
        square = _turned(rng, _magic(side))
        solution = tuple(tuple(factor * value + shift for value in row) for row in square)
        blanks = (3, 4, 5, 7, 9, 11, 13, 15, 17, 19)[difficulty - 1]
        return cls(givens=with_blanks(rng, solution, blanks), solution=solution)

    @property
    @override
    def size(self) -> int:
        return blanks_in(self.givens)

    @override
    def prompt(self) -> str:
        return (
            "Fill the dots with whole numbers above zero so that all numbers are different and "
            f"every row, every column and both diagonals add up to {sum(self.solution[0])}.\n"
            f"{rows_of(self.givens, blank=BLANK)}\n{_ANSWER_FORM}"
        )

    @override
    def steps(self) -> list[str]:
        return [f"{'+'.join(map(str, line))} gives {sum(line)}" for line in _lines(self.solution)]

    @override
    def answer(self) -> str:
        return rows_of(self.solution)

    @override
    def accepts(self, text: str) -> bool:
        side = len(self.givens)
        grid = integer_grid(text, side, side)
        if grid is None or not keeps(self.givens, grid):
            return False
        values = [value for row in grid for value in row]
        total = sum(self.solution[0])
        is_new = min(values) > 0 and len(set(values)) == len(values)
        return is_new and all(sum(line) == total for line in _lines(grid))


@dataclass(frozen=True, slots=True, kw_only=True)
class Survo(Puzzle):
    """Every number from 1 to the number of cells once, with given sums of rows and columns."""

    SIZE: ClassVar[str] = "blank cells"
    givens: Grid
    solution: Grid

    @override
    @classmethod
    def draw(cls, rng: random.Random, difficulty: int) -> Self:
        rows, columns = 2 + (difficulty + 1) // 4, 3 + difficulty // 3
        values = rng.sample(range(1, rows * columns + 1), rows * columns)
        solution = tuple(tuple(values[r * columns : (r + 1) * columns]) for r in range(rows))
        blanks = round(rows * columns * (0.35 + 0.06 * difficulty))
        return cls(givens=with_blanks(rng, solution, blanks), solution=solution)

    @property
    @override
    def size(self) -> int:
        return blanks_in(self.givens)

    @override
    def prompt(self) -> str:
        rows, columns = _sums(self.solution)
        return (
            f"Fill the dots so that the grid holds every number from 1 to "
            f"{len(rows) * len(columns)} once.\nSums of the rows: {' '.join(map(str, rows))}\n"
            f"Sums of the columns: {' '.join(map(str, columns))}\n"
            f"{rows_of(self.givens, blank=BLANK)}\n{_ANSWER_FORM}"
        )

    @override
    def steps(self) -> list[str]:
        return row_steps(self.givens, self.solution)

    @override
    def answer(self) -> str:
        return rows_of(self.solution)

    @override
    def accepts(self, text: str) -> bool:
        rows, columns = len(self.givens), len(self.givens[0])
        grid = integer_grid(text, rows, columns)
        if grid is None or not keeps(self.givens, grid):
            return False
        every = sorted(value for row in grid for value in row)
        return every == list(range(1, rows * columns + 1)) and _sums(grid) == _sums(self.solution)


def _sums(grid: Grid) -> tuple[list[int], list[int]]:
    return [sum(row) for row in grid], [sum(column) for column in zip(*grid, strict=True)]


def _runs(grid: Grid) -> list[tuple[str, list[int]]]:
    """Every unbroken run of numbers with its name, rows first."""
    found = []
    for kind, lines in (("row", grid), ("column", tuple(zip(*grid, strict=True)))):
        for number, line in enumerate(lines, 1):
            for is_black, group in groupby(enumerate(line, 1), lambda cell: cell[1] == BLANK):
                run = list(group)
                if not is_black:
                    name = f"{kind} {number}, from {run[0][0]} to {run[-1][0]}"
                    found.append((name, [value for _, value in run]))
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Kakuro(Puzzle):
    """Digits in the white cells; each run has a given sum and no digit twice."""

    SIZE: ClassVar[str] = "white cells"
    solution: Grid

    @override
    @classmethod
    def draw(cls, rng: random.Random, difficulty: int) -> Self:
        side = 3 + (difficulty - 1) // 2
        digits = tuple(row[:side] for row in latin_square(rng, 9)[:side])
        black = side if difficulty % 2 else side // 2
        return cls(solution=with_blanks(rng, digits, black))

    @property
    @override
    def size(self) -> int:
        return len(self.solution) ** 2 - blanks_in(self.solution)

    @override
    def prompt(self) -> str:
        white = "\n".join(
            "".join("#" if value == BLANK else "." for value in row) for row in self.solution
        )
        sums = "\n".join(f"{name}: {sum(run)}" for name, run in _runs(self.solution))
        return (
            "Fill each dot with a digit from 1 to 9. No digit repeats within an unbroken run of "
            f"dots in a row or a column, and each run has the sum given below.\n{white}\n{sums}\n"
            "Answer with the full grid: one line per row, black cells as #."
        )

    @override
    def steps(self) -> list[str]:
        return [
            f"{name}: {'+'.join(map(str, run))} gives {sum(run)}"
            for name, run in _runs(self.solution)
        ]

    @override
    def answer(self) -> str:
        return "\n".join(
            "".join("#" if value == BLANK else str(value) for value in row) for row in self.solution
        )

    @override
    def accepts(self, text: str) -> bool:
        side = len(self.solution)
        lines = picture(text, side, side, "#123456789")
        if lines is None:
            return False
        grid = tuple(tuple(BLANK if mark == "#" else int(mark) for mark in line) for line in lines)
        found, wanted = _runs(grid), _runs(self.solution)
        return [(name, sum(run)) for name, run in found] == [
            (name, sum(run)) for name, run in wanted
        ] and all(len(set(run)) == len(run) for _, run in found)
