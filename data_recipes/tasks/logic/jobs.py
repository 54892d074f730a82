"""Puzzles on work and time: schedule, pairing, free time."""

import random
import re
import string
from dataclasses import dataclass
from typing import ClassVar, Self

from typing_extensions import override

from m1.data_recipes.tasks.answers import labels
from m1.data_recipes.tasks.logic.graphs import Edge, connected_pairs, letters
from m1.data_recipes.tasks.puzzle import Puzzle


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheduling(Puzzle):
    """When is everything done, with jobs that wait for others and workers without end?"""

    SIZE: ClassVar[str] = "jobs"
    hours: dict[str, int]
    waits: tuple[Edge, ...]

    @override
    @classmethod
    def draw(cls, rng: random.Random, difficulty: int) -> Self:
        names = letters(3 + difficulty)
        order = rng.sample(names, len(names))
        place = {name: index for index, name in enumerate(order)}
        pairs = connected_pairs(rng, order, difficulty)
        waits = sorted((b, a) if place[a] < place[b] else (a, b) for a, b in pairs)
        return cls(hours={name: rng.randint(1, 12) for name in names}, waits=tuple(waits))

    @property
    @override
    def size(self) -> int:
        return len(self.hours)

    def _ends(self) -> dict[str, int]:
        """When each job ends, in an order in which they can be worked out."""
        ends: dict[str, int] = {}
        while len(ends) < len(self.hours):
            for name, hours in self.hours.items():
                needed = [b for a, b in self.waits if a == name]
                if name not in ends and all(b in ends for b in needed):
                    ends[name] = hours + max((ends[b] for b in needed), default=0)
        return ends

    @override
    def prompt(self) -> str:
        jobs = "\n".join(
            f"{name}: {hours} h" + "".join(f", after {b}" for a, b in self.waits if a == name)
            for name, hours in self.hours.items()
        )
        return (
            "Jobs with their hours; a job starts when all jobs it comes after are done, and any "
            f"number can run at once.\n{jobs}\nAfter how many hours is everything done? Answer "
            "with the number."
        )

    @override
    def steps(self) -> list[str]:
        return [f"{name} ends at {end}" for name, end in self._ends().items()]

    @override
    def answer(self) -> str:
        return str(max(self._ends().values()))


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairing(Puzzle):
    """Give every worker one task of those it can do; `able` holds the choices."""

    SIZE: ClassVar[str] = "workers"
    able: dict[str, tuple[int, ...]]
    solution: dict[str, int]

    @override
    @classmethod
    def draw(cls, rng: random.Random, difficulty: int) -> Self:
        names = letters(4 + difficulty)
        tasks = list(range(1, len(names) + 1))
        solution = dict(zip(names, rng.sample(tasks, len(tasks)), strict=True))
        able = {name: tuple(sorted({own, *rng.sample(tasks, 2)})) for name, own in solution.items()}
        return cls(able=able, solution=solution)

    @property
    @override
    def size(self) -> int:
        return len(self.able)

    @override
    def prompt(self) -> str:
        lines = "\n".join(f"{name}: {' '.join(map(str, can))}" for name, can in self.able.items())
        return (
            "Each line names a worker and the tasks it can do. Give every worker one of them, no "
            f"task twice.\n{lines}\nAnswer like A:1 B:2, all workers."
        )

    @override
    def steps(self) -> list[str]:
        return [
            f"{name} can do {' '.join(map(str, can))} and gets {self.solution[name]}"
            for name, can in self.able.items()
        ]

    @override
    def answer(self) -> str:
        return " ".join(f"{name}:{task}" for name, task in self.solution.items())

    @override
    def accepts(self, text: str) -> bool:
        found = labels(text, list(self.able))
        return (
            found is not None
            and len(set(found.values())) == len(found)
            and all(found[name] in map(str, can) for name, can in self.able.items())
        )


def _clock(minute: int) -> str:
    return f"{minute // 60:02d}:{minute % 60:02d}"


@dataclass(frozen=True, slots=True, kw_only=True)
class FreeTime(Puzzle):
    """The earliest time when all are free; `busy` holds (person, start, end) in minutes."""

    SIZE: ClassVar[str] = "appointments"
    length: int
    busy: tuple[tuple[str, int, int], ...]

    @override
    @classmethod
    def draw(cls, rng: random.Random, difficulty: int) -> Self:
        length = rng.choice((20, 30, 45, 60))
        busy: list[tuple[str, int, int]] = []
        while len(busy) < 4 + 2 * difficulty:
            person = string.ascii_uppercase[len(busy) // 3]
            start = rng.randrange(8 * 12, 17 * 12) * 5
            busy.append((person, start, start + rng.randrange(3, 13) * 5))
        return cls(length=length, busy=tuple(sorted(busy)))

    @property
    @override
    def size(self) -> int:
        return len(self.busy)

    def _tries(self) -> list[int]:
        """Starting points from 8:00 on, each the end of what stood in the way of the last."""
        tries = [8 * 60]
        while True:
            blocking = [e for _, s, e in self.busy if s < tries[-1] + self.length and e > tries[-1]]
            if not blocking:
                return tries
            tries.append(min(blocking))

    @override
    def prompt(self) -> str:
        lines = "\n".join(f"{p} is busy {_clock(s)} to {_clock(e)}." for p, s, e in self.busy)
        return (
            f"{lines}\nAll of them want to meet for {self.length} minutes, at 08:00 or later. "
            "When is the earliest start? Answer with the time, like 09:05."
        )

    @override
    def steps(self) -> list[str]:
        return [f"try {_clock(minute)}" for minute in self._tries()]

    @override
    def answer(self) -> str:
        return _clock(self._tries()[-1])

    @override
    def accepts(self, text: str) -> bool:
        found = re.fullmatch(r"([0-9]{1,2}):([0-9]{2})", text.strip())
        return found is not None and 60 * int(found[1]) + int(found[2]) == self._tries()[-1]
