"""Puzzles on things that move by rules: towers, boats, stacks, cells, a robot."""

import random
import string
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Self

from typing_extensions import override

from m1.data_recipes.tasks.answers import tokens
from m1.data_recipes.tasks.puzzle import Puzzle

_HANOI_DISKS = 8
_HANOI_MOVES = (3, 5, 8, 11, 15, 20, 31, 45, 63, 90)


def _tower_moves(places: list[int], goal: int) -> Iterator[tuple[int, int]]:
    """Fewest moves that gather all disks on `goal`; `places` holds each disk's peg, smallest first.

    The largest disk that is not there yet moves once, after all smaller ones have gone to the
    third peg.
    """
    for disk in range(len(places) - 1, -1, -1):
        if places[disk] != goal:
            source = places[disk]
            yield from _tower_moves(places[:disk], 3 - source - goal)
            yield source, goal
            places[: disk + 1] = [3 - source - goal] * disk + [goal]


@dataclass(frozen=True, slots=True, kw_only=True)
class Hanoi(Puzzle):
    """Gather all disks on a peg; `places` holds the peg of each disk, the smallest first."""

    SIZE: ClassVar[str] = "fewest moves"
    pegs: str
    places: str
    goal: str

    @override
    @classmethod
    def draw(cls, rng: random.Random, difficulty: int) -> Self:
        pegs = "".join(rng.sample(string.ascii_uppercase, 3))
        wanted = _HANOI_MOVES[difficulty - 1]
        while True:
            places = [rng.randrange(3) for _ in range(_HANOI_DISKS)]
            goal = rng.randrange(3)
            moves = list(_tower_moves(places.copy(), goal))
            if len(moves) >= wanted:
                for source, target in moves[: len(moves) - wanted]:
                    places[places.index(source)] = target
                return cls(pegs=pegs, places="".join(pegs[p] for p in places), goal=pegs[goal])

    @property
    @override
    def size(self) -> int:
        return len(self._moves())

    def _moves(self) -> list[str]:
        places = [self.pegs.index(peg) for peg in self.places]
        moves = _tower_moves(places, self.pegs.index(self.goal))
        return [f"{self.pegs[source]}{self.pegs[target]}" for source, target in moves]

    def _towers(self, places: str) -> str:
        def disks(peg: str) -> str:
            return " ".join(
                str(disk) for disk in range(len(places), 0, -1) if places[disk - 1] == peg
            )

        return "; ".join(f"{peg}: {disks(peg) or 'none'}" for peg in sorted(self.pegs))

    @override
    def prompt(self) -> str:
        return (
            "Disks lie on three pegs, listed from the bottom up; 1 is the smallest. One move "
            "takes the top disk of a peg to another peg, never onto a smaller disk.\n"
            f"{self._towers(self.places)}\nBring all disks to {self.goal}. Answer with the "
            "moves, each as its two pegs, like AB BC."
        )

    def _after(self, places: str, move: str) -> str | None:
        """The places after a legal move."""
        if len(move) != 2 or not set(move) <= set(self.pegs) or move[0] not in places:
            return None
        disk = places.index(move[0])
        if move[1] in places[: disk + 1]:
            return None
        return places[:disk] + move[1] + places[disk + 1 :]

    @override
    def steps(self) -> list[str]:
        places, lines = self.places, []
        for move in self._moves():
            places = self._after(places, move) or places
            lines.append(f"{move}, then {self._towers(places)}")
        return lines

    @override
    def answer(self) -> str:
        return " ".join(self._moves())

    @override
    def accepts(self, text: str) -> bool:
        places = self.places
        for move in tokens(text):
            after = self._after(places, move)
            if after is None:
                return False
            places = after
        return places == self.goal * len(self.places)


@dataclass(frozen=True, slots=True, kw_only=True)
class RiverCrossing(Puzzle):
    """A farmer takes goods over a river; `conflicts` are pairs that may not be left alone.

    Solvable by construction: every conflict involves one of `keepers`, which stay in the boat
    while the other goods cross one at a time.
    """

    SIZE: ClassVar[str] = "goods"
    goods: str
    keepers: str
    conflicts: tuple[str, ...]

    @override
    @classmethod
    def draw(cls, rng: random.Random, difficulty: int) -> Self:
        keeper_count = 1 + difficulty // 4
        goods = sorted(rng.sample(string.ascii_uppercase, 3 + difficulty))
        keepers = sorted(rng.sample(goods, keeper_count))
        others = [name for name in goods if name not in keepers]
        conflicts = {
            "".join(sorted((name, keeper)))
            for name in others
            for keeper in rng.sample(keepers, rng.randint(1, keeper_count))
        }
        return cls(
            goods="".join(goods), keepers="".join(keepers), conflicts=tuple(sorted(conflicts))
        )

    @property
    @override
    def size(self) -> int:
        return len(self.goods)

    @override
    def prompt(self) -> str:
        conflicts = ", ".join(f"{pair[0]} with {pair[1]}" for pair in self.conflicts)
        return (
            f"A farmer must bring the goods {' '.join(self.goods)} over a river, from left to "
            f"right. The boat holds the farmer, who must row, and up to {self._seats} goods. "
            f"These must not be on a bank together without the farmer: {conflicts}.\nAnswer with "
            "the goods in the boat at each crossing, in order (to the right, back, to the right, "
            "and so on), like AB A - C; a dash is an empty boat."
        )

    @property
    def _seats(self) -> int:
        return len(self.keepers) + 1

    def _crossings(self) -> list[str]:
        others = [name for name in self.goods if name not in self.keepers]
        there = [self.keepers + name for name in others]
        back = [self.keepers] * (len(others) - 1)
        mixed = [crossing for pair in zip(there, back, strict=False) for crossing in pair]
        return [*mixed, there[-1]]

    @override
    def steps(self) -> list[str]:
        return [
            f"{number}. {'back' if number % 2 == 0 else 'over'} with {' and '.join(crossing)}"
            for number, crossing in enumerate(self._crossings(), 1)
        ]

    @override
    def answer(self) -> str:
        return " ".join(self._crossings())

    @override
    def accepts(self, text: str) -> bool:
        here, there = set(self.goods), set[str]()
        crossings = tokens(text)
        for crossing in crossings:
            load = set() if crossing == "-" else set(crossing)
            fits = len(load) <= self._seats and len(load) == len(crossing.replace("-", ""))
            if not fits or not load <= here:
                return False
            here, there = there | load, here - load  # the farmer is where the goods now are
            if any(set(pair) <= there for pair in self.conflicts):
                return False
        return len(crossings) % 2 == 1 and here == set(self.goods)


@dataclass(frozen=True, slots=True, kw_only=True)
class StackMachine(Puzzle):
    """Carry out instructions on a stack of numbers."""

    SIZE: ClassVar[str] = "instructions"
    program: tuple[str, ...]

    @override
    @classmethod
    def draw(cls, rng: random.Random, difficulty: int) -> Self:
        program, depth = list[str](), 0
        while len(program) < 4 + 3 * difficulty or not depth:
            change = {"push": 1, "pop": -1, "dup": 1, "swap": 0, "add": -1, "reverse": 0}
            usable = [name for name in change if name == "push" or depth >= 2]
            name = rng.choice([*usable, "push"])
            depth += change[name]
            program.append(f"push {rng.randrange(10)}" if name == "push" else name)
        return cls(program=tuple(program))

    @property
    @override
    def size(self) -> int:
        return len(self.program)

    def _states(self) -> list[list[int]]:
        stack, states = list[int](), []
        for instruction in self.program:
            name, _, number = instruction.partition(" ")
            stack = {
                "push": lambda s, n: [*s, int(n)],
                "pop": lambda s, _: s[:-1],
                "dup": lambda s, _: [*s, s[-1]],
                "swap": lambda s, _: [*s[:-2], s[-1], s[-2]],
                "add": lambda s, _: [*s[:-2], s[-2] + s[-1]],
                "reverse": lambda s, _: s[::-1],
            }[name](stack, number)
            states.append(stack)
        return states

    @override
    def prompt(self) -> str:
        program = "\n".join(self.program)
        return (
            "A stack is empty. push N puts N on top, pop removes the top, dup puts a copy of the "
            "top on top, swap exchanges the two on top, add replaces the two on top by their "
            f"sum, reverse turns the whole stack over.\n{program}\n"
            "Answer with the stack from the bottom to the top."
        )

    @override
    def steps(self) -> list[str]:
        return [
            f"{instruction}: {' '.join(map(str, state))}"
            for instruction, state in zip(self.program, self._states(), strict=True)
        ]

    @override
    def answer(self) -> str:
        return " ".join(map(str, self._states()[-1]))


@dataclass(frozen=True, slots=True, kw_only=True)
class CellularAutomaton(Puzzle):
    """A ring of cells under an elementary rule (Wolfram's numbers)."""

    SIZE: ClassVar[str] = "cells to work out"
    rule: int
    start: str
    rounds: int

    @override
    @classmethod
    def draw(cls, rng: random.Random, difficulty: int) -> Self:
        start = "".join(rng.choices("01", k=7 + difficulty))
        return cls(rule=rng.randrange(1, 255), start=start, rounds=1 + difficulty // 2)

    @property
    @override
    def size(self) -> int:
        return len(self.start) * self.rounds

    def _rows(self) -> list[str]:
        rows = [self.start]
        for _ in range(self.rounds):
            row = rows[-1]
            around = [row[i - 1] + row[i] + row[(i + 1) % len(row)] for i in range(len(row))]
            rows.append("".join(str(self.rule >> int(three, 2) & 1) for three in around))
        return rows[1:]

    @override
    def prompt(self) -> str:
        table = ", ".join(
            f"{three:03b} gives {self.rule >> three & 1}" for three in range(7, -1, -1)
        )
        return (
            f"Cells form a ring. In each round all cells change at once, by their left "
            f"neighbour, themselves and their right neighbour: {table}.\nStart: {self.start}\n"
            f"Answer with the row after {self.rounds} round{'s' * (self.rounds > 1)}."
        )

    @override
    def steps(self) -> list[str]:
        return [f"round {number}: {row}" for number, row in enumerate(self._rows(), 1)]

    @override
    def answer(self) -> str:
        return self._rows()[-1]

    @override
    def accepts(self, text: str) -> bool:
        return "".join(text.split()) == self.answer()


_HEADINGS = ("north", "east", "south", "west")
_VECTORS = ((0, 1), (1, 0), (0, -1), (-1, 0))


@dataclass(frozen=True, slots=True, kw_only=True)
class SpaceWalk(Puzzle):
    """A robot turns and walks on a plane; turns count quarter turns to the right."""

    SIZE: ClassVar[str] = "instructions"
    heading: int
    program: tuple[tuple[str, int], ...]

    @override
    @classmethod
    def draw(cls, rng: random.Random, difficulty: int) -> Self:
        program = [
            ("turn", rng.randint(1, 3)) if step % 2 else ("walk", rng.randint(1, 9))
            for step in range(3 + 2 * difficulty)
        ]
        return cls(heading=rng.randrange(4), program=tuple(program))

    @property
    @override
    def size(self) -> int:
        return len(self.program)

    def _states(self) -> list[tuple[int, int, int]]:
        states = [(0, 0, self.heading)]
        for verb, amount in self.program:
            x, y, heading = states[-1]
            dx, dy = _VECTORS[heading]
            if verb == "turn":
                states.append((x, y, (heading + amount) % 4))
            else:
                states.append((x + amount * dx, y + amount * dy, heading))
        return states

    @override
    def prompt(self) -> str:
        turns = {1: "turn right", 2: "turn around", 3: "turn left"}
        program = ", ".join(
            turns[amount] if verb == "turn" else f"walk {amount}" for verb, amount in self.program
        )
        return (
            f"A robot stands at 0 0 and looks {_HEADINGS[self.heading]}. East makes the first "
            f"coordinate larger, north the second. It will: {program}. Answer with its two "
            "coordinates and where it looks, like 3 -2 west."
        )

    @override
    def steps(self) -> list[str]:
        return [self._told(state) for state in self._states()[1:]]

    @staticmethod
    def _told(state: tuple[int, int, int]) -> str:
        return f"{state[0]} {state[1]} {_HEADINGS[state[2]]}"

    @override
    def answer(self) -> str:
        return self._told(self._states()[-1])
