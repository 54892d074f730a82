"""Puzzles on Latin squares: sudoku, futoshiki, skyscraper, calcudoku."""

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import ClassVar, Self

from typing_extensions import override

from m1.data_recipes.tasks.answers import Grid, integer_grid, rows_of
from m1.data_recipes.tasks.puzzle import Puzzle

BLANK = 0
_ANSWER_FORM = "Answer with the full grid: one line per row, numbers separated by spaces."

Cell = tuple[int, int]


def latin_square(rng: random.Random, side: int) -> Grid:
    """A cyclic square with rows, columns and symbols permuted."""
    rows, columns, symbols = (rng.sample(range(side), side) for _ in range(3))
    return tuple(tuple(1 + symbols[(row + column) % side] for column in columns) for row in rows)


def is_latin(grid: Grid) -> bool:
    """Whether every row and every column holds 1 to the side, each once."""
    wanted = set(range(1, len(grid) + 1))
    return all(set(line) == wanted for line in (*grid, *zip(*grid, strict=True)))


def with_blanks(rng: random.Random, grid: Grid, count: int) -> Grid:
    """The grid with `count` cells blanked."""
    places = set(rng.sample(list(product(range(len(grid)), range(len(grid[0])))), count))
    return tuple(
        tuple(BLANK if (row, column) in places else value for column, value in enumerate(line))
        for row, line in enumerate(grid)
    )


def keeps(givens: Grid, grid: Grid) -> bool:
    """Whether the grid agrees with every given number."""
    return all(
        given in (BLANK, value)
        for given_row, row in zip(givens, grid, strict=True)
        for given, value in zip(given_row, row, strict=True)
    )


def blanks_in(grid: Grid) -> int:
    """Number of blank cells."""
    return sum(line.count(BLANK) for line in grid)


def row_steps(givens: Grid, solution: Grid) -> list[str]:
    """One line per row with blanks: what goes into them."""
    return [
        f"row {number}: {' '.join(map(str, row))}"
        for number, (given, row) in enumerate(zip(givens, solution, strict=True), 1)
        if BLANK in given
    ]


def _side_and_blanks(difficulty: int) -> tuple[int, int]:
    side = 4 + (difficulty - 1) // 3
    return side, round(side * side * (0.35 + 0.05 * difficulty))


@dataclass(frozen=True, slots=True, kw_only=True)
class Sudoku(Puzzle):
    """Rows, columns and boxes (height x width) hold every number once."""

    SIZE: ClassVar[str] = "blank cells"
    box: Cell
    givens: Grid
    solution: Grid

    @override
    @classmethod
    def draw(cls, rng: random.Random, difficulty: int) -> Self:
        height, width = (2, 2) if difficulty <= 3 else (2, 3) if difficulty <= 6 else (3, 3)
        side = height * width
        bands = [rng.sample(range(height), height) for _ in range(width)]
        rows = [
            band * height + row for band in rng.sample(range(width), width) for row in bands[band]
        ]
        stacks = [rng.sample(range(width), width) for _ in range(height)]
        columns = [s * width + c for s in rng.sample(range(height), height) for c in stacks[s]]
        symbols = rng.sample(range(1, side + 1), side)
        solution = tuple(
            tuple(symbols[(width * (r % height) + r // height + c) % side] for c in columns)
            for r in rows
        )
        share = 0.25 + 0.1 * ((difficulty - 1) % 3 + (difficulty == 10) * 3)
        givens = with_blanks(rng, solution, round(side * side * share))
        return cls(box=(height, width), givens=givens, solution=solution)

    @property
    @override
    def size(self) -> int:
        return blanks_in(self.givens)

    @override
    def prompt(self) -> str:
        side = len(self.givens)
        height, width = self.box
        return (
            f"Fill the dots with numbers from 1 to {side} so that every row, every column and "
            f"every box of {height} rows and {width} columns holds each number once.\n"
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
        side = len(self.givens)
        grid = integer_grid(text, side, side)
        return (
            grid is not None and keeps(self.givens, grid) and is_latin(grid) and self._boxes(grid)
        )

    def _boxes(self, grid: Grid) -> bool:
        height, width = self.box
        return all(
            len({grid[top + r][left + c] for r in range(height) for c in range(width)}) == len(grid)
            for top in range(0, len(grid), height)
            for left in range(0, len(grid), width)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Futoshiki(Puzzle):
    """A Latin square with `smaller than` signs; `less` holds (smaller cell, larger cell)."""

    SIZE: ClassVar[str] = "blank cells"
    givens: Grid
    less: tuple[tuple[Cell, Cell], ...]
    solution: Grid

    @override
    @classmethod
    def draw(cls, rng: random.Random, difficulty: int) -> Self:
        side, blanks = _side_and_blanks(difficulty)
        solution = latin_square(rng, side)
        neighbours = [
            ((r, c), (r + dr, c + dc))
            for r, c, (dr, dc) in product(range(side), range(side), ((0, 1), (1, 0)))
            if r + dr < side and c + dc < side
        ]
        chosen = rng.sample(neighbours, side + 2 * (side - 4) + 2)
        less = tuple(
            (a, b) if solution[a[0]][a[1]] < solution[b[0]][b[1]] else (b, a) for a, b in chosen
        )
        return cls(givens=with_blanks(rng, solution, blanks), less=less, solution=solution)

    @property
    @override
    def size(self) -> int:
        return blanks_in(self.givens)

    @override
    def prompt(self) -> str:
        signs = "\n".join(f"r{a[0] + 1}c{a[1] + 1} < r{b[0] + 1}c{b[1] + 1}" for a, b in self.less)
        return (
            f"Fill the dots with numbers from 1 to {len(self.givens)} so that every row and every "
            f"column holds each number once and all inequalities hold (r1c2 is row 1, column 2)."
            f"\n{rows_of(self.givens, blank=BLANK)}\n{signs}\n{_ANSWER_FORM}"
        )

    @override
    def steps(self) -> list[str]:
        return row_steps(self.givens, self.solution)

    @override
    def answer(self) -> str:
        return rows_of(self.solution)

    @override
    def accepts(self, text: str) -> bool:
        grid = integer_grid(text, len(self.givens), len(self.givens))
        return (
            grid is not None
            and keeps(self.givens, grid)
            and is_latin(grid)
            and all(grid[a[0]][a[1]] < grid[b[0]][b[1]] for a, b in self.less)
        )


def visible(heights: Sequence[int]) -> int:
    """How many towers are seen from the front of a row: each that tops all before it."""
    return sum(height > max(heights[:place], default=0) for place, height in enumerate(heights))


def _views(grid: Grid) -> tuple[tuple[int, ...], ...]:
    """Visible towers from the top, the bottom, the left and the right."""
    columns = list(zip(*grid, strict=True))
    return tuple(
        tuple(visible(line[::direction]) for line in lines)
        for lines, direction in ((columns, 1), (columns, -1), (grid, 1), (grid, -1))
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Skyscraper(Puzzle):
    """A Latin square of towers; `views` counts the visible ones from the four sides."""

    SIZE: ClassVar[str] = "blank cells"
    givens: Grid
    views: tuple[tuple[int, ...], ...]
    solution: Grid

    @override
    @classmethod
    def draw(cls, rng: random.Random, difficulty: int) -> Self:
        side, blanks = _side_and_blanks(difficulty)
        solution = latin_square(rng, side)
        givens = with_blanks(rng, solution, blanks)
        return cls(givens=givens, views=_views(solution), solution=solution)

    @property
    @override
    def size(self) -> int:
        return blanks_in(self.givens)

    @override
    def prompt(self) -> str:
        sides = zip(("top", "bottom", "left", "right"), self.views, strict=True)
        views = "\n".join(f"from the {side}: {' '.join(map(str, seen))}" for side, seen in sides)
        return (
            f"Each cell is a tower of height 1 to {len(self.givens)}; every row and every column "
            "holds each height once. Looking along a line, a tower hides all lower ones behind "
            f"it. Fill the dots so that the numbers of visible towers are right.\n{views}\n"
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
        grid = integer_grid(text, len(self.givens), len(self.givens))
        return (
            grid is not None
            and keeps(self.givens, grid)
            and is_latin(grid)
            and _views(grid) == self.views
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Cage:
    """Cells whose numbers give `total` by `sign`: `+`, `*`, or the difference `-` of two."""

    cells: tuple[Cell, ...]
    sign: str
    total: int

    def holds(self, grid: Grid) -> bool:
        """Whether the numbers in the cage give the total."""
        return self.total == _combined(self.sign, [grid[r][c] for r, c in self.cells])


def _combined(sign: str, values: Sequence[int]) -> int:
    if sign == "-":
        return max(values) - min(values)
    return sum(values) if sign == "+" else math.prod(values)


def _regions(rng: random.Random, side: int, singles: int) -> Iterator[list[Cell]]:
    """The cells of a square in connected groups of one to three, at least `singles` of one."""
    free = rng.sample(list(product(range(side), range(side))), side * side)
    for _ in range(singles):
        yield [free.pop()]
    while free:
        region = [free.pop()]
        for _ in range(rng.randint(1, 2)):
            near = [(r, c) for r, c in free if any(abs(r - a) + abs(c - b) == 1 for a, b in region)]
            if near:
                region.append(rng.choice(near))
                free.remove(region[-1])
        yield region


@dataclass(frozen=True, slots=True, kw_only=True)
class Calcudoku(Puzzle):
    """A Latin square in cages with a sum, product or difference each."""

    SIZE: ClassVar[str] = "cells in cages of two or more"
    side: int
    cages: tuple[Cage, ...]
    solution: Grid

    @override
    @classmethod
    def draw(cls, rng: random.Random, difficulty: int) -> Self:
        side = 3 + (difficulty - 1) // 2
        solution = latin_square(rng, side)
        cages = []
        for region in _regions(rng, side, side * (difficulty % 2)):
            sign = "+" if len(region) == 1 else rng.choice("+*-" if len(region) == 2 else "+*")
            total = _combined(sign, [solution[r][c] for r, c in region])
            cages.append(Cage(cells=tuple(sorted(region)), sign=sign, total=total))
        return cls(side=side, cages=tuple(cages), solution=solution)

    @property
    @override
    def size(self) -> int:
        return sum(len(cage.cells) for cage in self.cages if len(cage.cells) > 1)

    @override
    def prompt(self) -> str:
        cages = "\n".join(f"{self._cells(cage)} {cage.sign} {cage.total}" for cage in self.cages)
        return (
            f"Fill a {self.side} x {self.side} grid with numbers from 1 to {self.side} so that "
            "every row and every column holds each number once. Each line below names a cage "
            "(r1c2 is row 1, column 2), how its numbers are combined (+ sum, * product, - larger "
            f"minus smaller) and the result.\n{cages}\n{_ANSWER_FORM}"
        )

    @staticmethod
    def _cells(cage: Cage) -> str:
        return " ".join(f"r{r + 1}c{c + 1}" for r, c in cage.cells)

    @override
    def steps(self) -> list[str]:
        return [
            f"{self._cells(cage)}: "
            f"{cage.sign.join(str(self.solution[r][c]) for r, c in cage.cells)} gives {cage.total}"
            for cage in self.cages
        ]

    @override
    def answer(self) -> str:
        return rows_of(self.solution)

    @override
    def accepts(self, text: str) -> bool:
        grid = integer_grid(text, self.side, self.side)
        return grid is not None and is_latin(grid) and all(cage.holds(grid) for cage in self.cages)
