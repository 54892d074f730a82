"""Puzzles that place things on a board: stars, tents, mines."""

import random
import string
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from typing import ClassVar, Self

from typing_extensions import override

from m1.data_recipes.tasks.answers import cells, integers
from m1.data_recipes.tasks.puzzle import Puzzle

Cell = tuple[int, int]

_CELLS_FORM = "Answer with one line per {thing}: its row and its column, counted from 1."


def _touch(a: Cell, b: Cell) -> bool:
    """Whether two cells are neighbours, corners included."""
    return a != b and max(abs(a[0] - b[0]), abs(a[1] - b[1])) == 1


def _beside(cell: Cell, rows: int, columns: int) -> Iterator[Cell]:
    """The cells of the board that share an edge with `cell`."""
    for dr, dc in ((-1, 0), (1, 0), (0, -1), (0, 1)):
        if 0 <= cell[0] + dr < rows and 0 <= cell[1] + dc < columns:
            yield cell[0] + dr, cell[1] + dc


def _no_two_touch(places: Sequence[Cell]) -> bool:
    return not any(_touch(a, b) for i, a in enumerate(places) for b in places[:i])


def _cell_lines(places: Sequence[Cell]) -> str:
    return "\n".join(f"{row + 1} {column + 1}" for row, column in places)


@dataclass(frozen=True, slots=True, kw_only=True)
class StarPlacement(Puzzle):
    """One star per row, column and region; stars do not touch. `solution`: column by row."""

    SIZE: ClassVar[str] = "cells of the board"
    regions: tuple[str, ...]
    solution: tuple[int, ...]

    @override
    @classmethod
    def draw(cls, rng: random.Random, difficulty: int) -> Self:
        side = 4 + difficulty
        solution = rng.sample(range(side), side)
        while any(abs(a - b) < 2 for a, b in pairwise(solution)):
            rng.shuffle(solution)
        owner = {(row, column): row for row, column in enumerate(solution)}
        frontier = list(owner)
        while frontier:
            cell = frontier.pop(rng.randrange(len(frontier)))
            free = [near for near in _beside(cell, side, side) if near not in owner]
            if free:
                owner[rng.choice(free)] = owner[cell]
                frontier += [cell, *(near for near in free if near in owner)]
        regions = tuple(
            "".join(string.ascii_uppercase[owner[r, c]] for c in range(side)) for r in range(side)
        )
        return cls(regions=regions, solution=tuple(solution))

    @property
    @override
    def size(self) -> int:
        return len(self.regions) ** 2

    @override
    def prompt(self) -> str:
        board = "\n".join(self.regions)
        return (
            "Place one star in every row, every column and every region (cells with the same "
            f"letter) so that no two stars touch, not even at a corner.\n{board}\n"
            "Answer with the column of the star (counted from 1) in each row, top to bottom."
        )

    @override
    def steps(self) -> list[str]:
        return [
            f"row {row + 1}: column {column + 1}, region {self.regions[row][column]}"
            for row, column in enumerate(self.solution)
        ]

    @override
    def answer(self) -> str:
        return " ".join(str(column + 1) for column in self.solution)

    @override
    def accepts(self, text: str) -> bool:
        columns = integers(text)
        side = len(self.regions)
        if columns is None or sorted(columns) != list(range(1, side + 1)):
            return False
        regions = {self.regions[row][column - 1] for row, column in enumerate(columns)}
        return len(regions) == side and all(abs(a - b) > 1 for a, b in pairwise(columns))


@dataclass(frozen=True, slots=True, kw_only=True)
class Campsite(Puzzle):
    """A tent beside every tree, tents apart, with given numbers per row and column."""

    SIZE: ClassVar[str] = "tents"
    side: int
    trees: tuple[Cell, ...]
    tents: tuple[Cell, ...]

    @override
    @classmethod
    def draw(cls, rng: random.Random, difficulty: int) -> Self:
        side, wanted = 5 + difficulty // 2, 2 + difficulty
        board = list(product(range(side), range(side)))
        while True:
            tents: list[Cell] = []
            trees: list[Cell] = []
            for tent in rng.sample(board, len(board)):
                beside = [c for c in _beside(tent, side, side) if c not in tents + trees]
                is_free = tent not in trees and not any(_touch(tent, other) for other in tents)
                if is_free and beside and len(tents) < wanted:
                    tents.append(tent)
                    trees.append(rng.choice(beside))
            if len(tents) == wanted:
                return cls(side=side, trees=tuple(sorted(trees)), tents=tuple(sorted(tents)))

    @property
    @override
    def size(self) -> int:
        return len(self.tents)

    def _counts(self, tents: Sequence[Cell]) -> list[list[int]]:
        return [[sum(t[axis] == i for t in tents) for i in range(self.side)] for axis in (0, 1)]

    @override
    def prompt(self) -> str:
        board = "\n".join(
            "".join("T" if (r, c) in self.trees else "." for c in range(self.side))
            for r in range(self.side)
        )
        rows, columns = self._counts(self.tents)
        return (
            "Put up tents on free cells. Every tree T gets a tent of its own directly above, "
            "below, left or right of it; there are as many tents as trees; tents do not touch, "
            f"not even at a corner.\n{board}\nTents per row: {' '.join(map(str, rows))}\n"
            f"Tents per column: {' '.join(map(str, columns))}\n{_CELLS_FORM.format(thing='tent')}"
        )

    @override
    def steps(self) -> list[str]:
        pairs = _matching({tree: self._near(tree, self.tents) for tree in self.trees})
        return [
            f"tree {tree[0] + 1} {tree[1] + 1}: tent {tent[0] + 1} {tent[1] + 1}"
            for tent, tree in pairs.items()
        ]

    def _near(self, tree: Cell, tents: Sequence[Cell]) -> list[Cell]:
        return [cell for cell in _beside(tree, self.side, self.side) if cell in tents]

    @override
    def answer(self) -> str:
        return _cell_lines(self.tents)

    @override
    def accepts(self, text: str) -> bool:
        found = cells(text)
        if found is None or len(found) != len(self.trees):
            return False
        tents = [(row - 1, column - 1) for row, column in found]
        pairs = _matching({tree: self._near(tree, tents) for tree in self.trees})
        return (
            len(pairs) == len(tents)
            and not set(tents) & set(self.trees)
            and _no_two_touch(tents)
            and self._counts(tents) == self._counts(self.tents)
        )


def _matching(choices: dict[Cell, list[Cell]]) -> dict[Cell, Cell]:
    """A largest pairing, choice to chooser, by augmenting paths (Kuhn)."""
    taken: dict[Cell, Cell] = {}

    def place(chooser: Cell, tried: set[Cell]) -> bool:
        for choice in choices[chooser]:
            if choice in tried:
                continue
            tried.add(choice)
            if choice not in taken or place(taken[choice], tried):
                taken[choice] = chooser
                return True
        return False

    for chooser in choices:
        place(chooser, set())
    return taken


@dataclass(frozen=True, slots=True, kw_only=True)
class Minesweeper(Puzzle):
    """Find the mines under the hidden cells from the numbers on the open ones."""

    SIZE: ClassVar[str] = "hidden cells"
    side: int
    mines: tuple[Cell, ...]
    hidden: tuple[Cell, ...]

    @override
    @classmethod
    def draw(cls, rng: random.Random, difficulty: int) -> Self:
        side = 4 + (difficulty - 1) // 2
        board = rng.sample(list(product(range(side), range(side))), side * side)
        mines = board[: difficulty + 1]
        hidden = board[: 3 * len(mines)]
        return cls(side=side, mines=tuple(sorted(mines)), hidden=tuple(sorted(hidden)))

    @property
    @override
    def size(self) -> int:
        return len(self.hidden)

    def _numbers(self, mines: Sequence[Cell]) -> dict[Cell, int]:
        """Mines around every open cell."""
        board = product(range(self.side), range(self.side))
        hidden = set(self.hidden)
        return {c: sum(_touch(c, mine) for mine in mines) for c in board if c not in hidden}

    @override
    def prompt(self) -> str:
        numbers = self._numbers(self.mines)
        board = "\n".join(
            " ".join(str(numbers.get((r, c), "?")) for c in range(self.side))
            for r in range(self.side)
        )
        return (
            f"There are {len(self.mines)} mines under the cells marked ?. Each number counts the "
            f"mines in the up to eight cells around it. Find all mines.\n{board}\n"
            f"{_CELLS_FORM.format(thing='mine')}"
        )

    @override
    def steps(self) -> list[str]:
        return [
            f"cell {c[0] + 1} {c[1] + 1} shows {number}: "
            + (", ".join(f"{m[0] + 1} {m[1] + 1}" for m in self.mines if _touch(c, m)) or "none")
            for c, number in self._numbers(self.mines).items()
        ]

    @override
    def answer(self) -> str:
        return _cell_lines(self.mines)

    @override
    def accepts(self, text: str) -> bool:
        found = cells(text)
        if found is None or len(found) != len(self.mines):
            return False
        mines = [(row - 1, column - 1) for row, column in found]
        return set(mines) <= set(self.hidden) and self._numbers(mines) == self._numbers(self.mines)
