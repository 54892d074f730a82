"""Puzzles that fill a board line by line: nonogram, queens."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, product
from typing import ClassVar, Self

from typing_extensions import override

from m1.data_recipes.tasks.answers import integers, picture
from m1.data_recipes.tasks.puzzle import Puzzle

Cell = tuple[int, int]


def _blocks(line: Sequence[str]) -> list[int]:
    """Lengths of the unbroken runs of `#`."""
    return [len(list(group)) for mark, group in groupby(line) if mark == "#"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Nonogram(Puzzle):
    """A picture from the lengths of the filled runs in its rows and columns."""

    SIZE: ClassVar[str] = "cells of the board"
    solution: tuple[str, ...]

    @override
    @classmethod
    def draw(cls, rng: random.Random, difficulty: int) -> Self:
        side = 3 + difficulty
        return cls(
            solution=tuple(
                "".join("#" if rng.random() < 0.6 else "." for _ in range(side))
                for _ in range(side)
            )
        )

    @property
    @override
    def size(self) -> int:
        return len(self.solution) ** 2

    @override
    def prompt(self) -> str:
        rows, columns = (
            "\n".join(" ".join(map(str, _blocks(line))) or "0" for line in lines)
            for lines in (self.solution, list(zip(*self.solution, strict=True)))
        )
        return (
            f"Fill cells of a {len(self.solution)} x {len(self.solution)} board. Each line below "
            "lists the lengths of the unbroken filled runs, in order; 0 means none.\n"
            f"Rows, top to bottom:\n{rows}\nColumns, left to right:\n{columns}\n"
            "Answer with the board: one line per row, # for filled and . for empty."
        )

    @override
    def steps(self) -> list[str]:
        return [
            f"row {number}, runs {' '.join(map(str, _blocks(line))) or '0'}: {line}"
            for number, line in enumerate(self.solution, 1)
        ]

    @override
    def answer(self) -> str:
        return "\n".join(self.solution)

    @override
    def accepts(self, text: str) -> bool:
        side = len(self.solution)
        lines = picture(text, side, side, "#.")
        if lines is None:
            return False
        pairs = (
            *zip(lines, self.solution, strict=True),
            *zip(zip(*lines, strict=True), zip(*self.solution, strict=True), strict=True),
        )
        return all(_blocks(found) == _blocks(wanted) for found, wanted in pairs)


def _queens(rng: random.Random, side: int) -> list[int]:
    """Column of each row's queen; rows are filled in order, columns tried at random."""
    placed: list[int] = []
    untried = [rng.sample(range(side), side)]
    while len(placed) < side:
        if not untried[-1]:
            untried.pop()
            placed.pop()
            continue
        column, row = untried[-1].pop(), len(placed)
        if all(c != column and abs(c - column) != row - r for r, c in enumerate(placed)):
            placed.append(column)
            untried.append(rng.sample(range(side), side))
    return placed


@dataclass(frozen=True, slots=True, kw_only=True)
class Queens(Puzzle):
    """One queen per row and column, none on a diagonal of another, none on a blocked cell."""

    SIZE: ClassVar[str] = "queens"
    blocked: tuple[Cell, ...]
    solution: tuple[int, ...]

    @override
    @classmethod
    def draw(cls, rng: random.Random, difficulty: int) -> Self:
        side = 4 + difficulty
        solution = _queens(rng, side)
        free = [(r, c) for r, c in product(range(side), range(side)) if solution[r] != c]
        return cls(blocked=tuple(sorted(rng.sample(free, 2 * side))), solution=tuple(solution))

    @property
    @override
    def size(self) -> int:
        return len(self.solution)

    @override
    def prompt(self) -> str:
        side = len(self.solution)
        board = "\n".join(
            "".join("#" if (r, c) in self.blocked else "." for c in range(side))
            for r in range(side)
        )
        return (
            f"Place {side} queens on free cells (dots) so that no two share a row, a column or "
            f"a diagonal. Blocked cells (#) do not stop a queen's view.\n{board}\n"
            "Answer with the column of the queen (counted from 1) in each row, top to bottom."
        )

    @override
    def steps(self) -> list[str]:
        return [
            f"row {row + 1}: column {column + 1}, diagonals {row - column} and {row + column}"
            for row, column in enumerate(self.solution)
        ]

    @override
    def answer(self) -> str:
        return " ".join(str(column + 1) for column in self.solution)

    @override
    def accepts(self, text: str) -> bool:
        columns = integers(text)
        side = len(self.solution)
        if columns is None or sorted(columns) != list(range(1, side + 1)):
            return False
        queens = [(row, column - 1) for row, column in enumerate(columns)]
        diagonals = ({r - c for r, c in queens}, {r + c for r, c in queens})
        return all(len(lines) == side for lines in diagonals) and not set(queens) & set(
            self.blocked
        )
