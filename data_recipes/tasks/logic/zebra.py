"""The zebra puzzle: houses in a row, each with its own value of every attribute."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Self

from typing_extensions import override

from m1.data_recipes.tasks.answers import rows_of, tokens
from m1.data_recipes.tasks.puzzle import Puzzle

_ATTRIBUTES = {
    "colour": ["red", "green", "blue", "white", "black", "brown", "pink", "grey"],
    "animal": ["cat", "dog", "horse", "fox", "owl", "crab", "goat", "mouse"],
    "drink": ["tea", "milk", "water", "coffee", "juice", "cocoa", "cider", "soda"],
    "tool": ["saw", "drill", "rake", "spade", "brush", "ladder", "pliers", "chisel"],
    "fruit": ["apple", "pear", "plum", "fig", "grape", "melon", "cherry", "lemon"],
    "metal": ["iron", "gold", "zinc", "tin", "lead", "copper", "silver", "nickel"],
}
_HOUSES_AND_ATTRIBUTES = (
    *((3, 2), (3, 3), (4, 3), (4, 4), (5, 4)),
    *((5, 5), (6, 5), (7, 5), (8, 5), (8, 6)),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Clue:
    """`first` stands `kind` of `second`; for `at`, `second` is the number of the house."""

    kind: Literal["at", "same", "left", "beside"]
    first: str
    second: str

    def holds(self, house_of: Mapping[str, int]) -> bool:
        """Whether the houses, counted from 1, fit."""
        if self.kind == "at":
            return house_of[self.first] == int(self.second)
        gap = house_of[self.second] - house_of[self.first]
        return {"same": gap == 0, "left": gap == 1, "beside": abs(gap) == 1}[self.kind]

    def __str__(self) -> str:
        return {
            "at": f"{self.first} is in house {self.second}.",
            "same": f"{self.first} and {self.second} are in the same house.",
            "left": f"{self.first} is in the house directly left of {self.second}.",
            "beside": f"{self.first} is in a house next to {self.second}.",
        }[self.kind]


def _true_clue(rng: random.Random, rows: Sequence[Sequence[str]], first: str, house: int) -> Clue:
    """Something true about `first`, which is in the row `house`."""
    others = [value for value in rows[house] if value != first]
    clues = [Clue(kind="at", first=first, second=str(house + 1))]
    clues += [Clue(kind="same", first=first, second=rng.choice(others))] * 2
    if house + 1 < len(rows):
        clues += [Clue(kind="left", first=first, second=rng.choice(rows[house + 1]))] * 2
    near = rows[house - 1] if house else rows[1]
    clues += [Clue(kind="beside", first=first, second=rng.choice(near))]
    return rng.choice(clues)


@dataclass(frozen=True, slots=True, kw_only=True)
class Zebra(Puzzle):
    """Houses in a row, each with one value of every attribute; `rows` is the solution."""

    SIZE: ClassVar[str] = "values to place"
    clues: tuple[Clue, ...]
    rows: tuple[tuple[str, ...], ...]

    @override
    @classmethod
    def draw(cls, rng: random.Random, difficulty: int) -> Self:
        houses, attributes = _HOUSES_AND_ATTRIBUTES[difficulty - 1]
        columns = [rng.sample(words, houses) for words in list(_ATTRIBUTES.values())[:attributes]]
        rows = tuple(zip(*columns, strict=True))
        placed = [(value, house) for house, row in enumerate(rows) for value in row]
        told = placed + rng.sample(placed, len(placed) // 2)
        clues = {str(clue): clue for clue in (_true_clue(rng, rows, v, h) for v, h in told)}
        return cls(clues=tuple(rng.sample(list(clues.values()), len(clues))), rows=rows)

    @property
    @override
    def size(self) -> int:
        return len(self.rows) * len(self.rows[0])

    def _attributes(self) -> dict[str, list[str]]:
        columns = zip(*self.rows, strict=True)
        return {name: sorted(column) for name, column in zip(_ATTRIBUTES, columns, strict=False)}

    @override
    def prompt(self) -> str:
        attributes = self._attributes()
        values = "\n".join(f"{name}: {' '.join(column)}" for name, column in attributes.items())
        return (
            f"{len(self.rows)} houses stand in a row, numbered from left to right. Each has its "
            f"own value of every attribute.\n{values}\n"
            + "\n".join(map(str, self.clues))
            + f"\nAnswer with one line per house, in order: its {', '.join(attributes)}."
        )

    @override
    def steps(self) -> list[str]:
        house_of = {value: i for i, row in enumerate(self.rows, 1) for value in row}
        return [
            str(clue) + " " + ", ".join(f"{v} {house_of[v]}" for v in self._values(clue))
            for clue in self.clues
        ]

    @staticmethod
    def _values(clue: Clue) -> list[str]:
        return [clue.first] if clue.kind == "at" else [clue.first, clue.second]

    @override
    def answer(self) -> str:
        return rows_of(self.rows)

    @override
    def accepts(self, text: str) -> bool:
        words, width = tokens(text.lower()), len(self.rows[0])
        if len(words) != self.size:
            return False
        columns = [sorted(words[start::width]) for start in range(width)]
        house_of = {word: 1 + index // width for index, word in enumerate(words)}
        return columns == list(self._attributes().values()) and all(
            clue.holds(house_of) for clue in self.clues
        )
