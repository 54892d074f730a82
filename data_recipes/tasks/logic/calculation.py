"""Puzzles on small calculations: new operators, bases, sets, counting, dates."""

import datetime
import random
import string
from dataclasses import dataclass
from typing import ClassVar, Self

from typing_extensions import override

from m1.data_recipes.tasks.answers import integers
from m1.data_recipes.tasks.puzzle import Puzzle


@dataclass(frozen=True, slots=True, kw_only=True)
class NewOperator(Puzzle):
    """A chain of a newly defined operator: a @ b = (p a + q b + r) mod m, from the left."""

    SIZE: ClassVar[str] = "operations"
    factors: tuple[int, int, int]
    modulus: int
    operands: tuple[int, ...]

    @override
    @classmethod
    def draw(cls, rng: random.Random, difficulty: int) -> Self:
        return cls(
            factors=(rng.randint(2, 9), rng.randint(2, 9), rng.randint(0, 9)),
            modulus=rng.randint(11, 99),
            operands=tuple(rng.randint(0, 20) for _ in range(2 + difficulty)),
        )

    @property
    @override
    def size(self) -> int:
        return len(self.operands) - 1

    def _values(self) -> list[int]:
        p, q, r = self.factors
        values = [self.operands[0]]
        for operand in self.operands[1:]:
            values.append((p * values[-1] + q * operand + r) % self.modulus)
        return values

    @override
    def prompt(self) -> str:
        p, q, r = self.factors
        return (
            f"The operator @ is defined by a @ b = ({p}*a + {q}*b + {r}) mod {self.modulus}, "
            f"applied from left to right. Work out {' @ '.join(map(str, self.operands))}\n"
            "Answer with the number."
        )

    @override
    def steps(self) -> list[str]:
        values = self._values()
        return [
            f"{before} @ {operand} gives {after}"
            for before, operand, after in zip(values, self.operands[1:], values[1:], strict=False)
        ]

    @override
    def answer(self) -> str:
        return str(self._values()[-1])


_DIGITS = string.digits + string.ascii_uppercase


def in_base(number: int, base: int) -> str:
    """A number written in a base from 2 to 36."""
    text = ""
    while number:
        number, digit = divmod(number, base)
        text = _DIGITS[digit] + text
    return text or "0"


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseConversion(Puzzle):
    """From one base to another."""

    SIZE: ClassVar[str] = "digits given"
    number: str
    source: int
    target: int

    @override
    @classmethod
    def draw(cls, rng: random.Random, difficulty: int) -> Self:
        source, target = rng.sample(range(2, 17), 2)
        digits = rng.choice(_DIGITS[1:source]) + "".join(
            rng.choices(_DIGITS[:source], k=2 + difficulty)
        )
        return cls(number=digits, source=source, target=target)

    @property
    @override
    def size(self) -> int:
        return len(self.number)

    @override
    def prompt(self) -> str:
        return (
            f"Write the base-{self.source} number {self.number} in base {self.target}. Digits "
            "above 9 are A, B, C and so on. Answer with the number only."
        )

    @override
    def steps(self) -> list[str]:
        value, lines = 0, []
        for digit in self.number:
            value = value * self.source + _DIGITS.index(digit)
            lines.append(f"{digit}: {value}")
        while value:
            value, rest = divmod(value, self.target)
            lines.append(f"{value}, rest {_DIGITS[rest]}")
        return lines

    @override
    def answer(self) -> str:
        return in_base(int(self.number, self.source), self.target)

    @override
    def accepts(self, text: str) -> bool:
        return text.strip().upper() == self.answer()


_SET_WORDS = {"|": "union", "&": "intersection", "-": "difference", "^": "symmetric difference"}


@dataclass(frozen=True, slots=True, kw_only=True)
class SetOperations(Puzzle):
    """Operations on named sets, from the left; the answer is a set, in any order."""

    SIZE: ClassVar[str] = "elements of all sets"
    sets: tuple[tuple[int, ...], ...]
    signs: str

    @override
    @classmethod
    def draw(cls, rng: random.Random, difficulty: int) -> Self:
        count, elements = 2 + difficulty // 2, 4 + difficulty
        sets = tuple(
            tuple(sorted(rng.sample(range(1, 3 * elements), elements))) for _ in range(count)
        )
        return cls(sets=sets, signs="".join(rng.choices("|&-^", k=count - 1)))

    @property
    @override
    def size(self) -> int:
        return sum(map(len, self.sets))

    def _results(self) -> list[set[int]]:
        results = [set(self.sets[0])]
        for sign, other in zip(self.signs, map(set, self.sets[1:]), strict=True):
            here = results[-1]
            results.append(
                {"|": here | other, "&": here & other, "-": here - other, "^": here ^ other}[sign]
            )
        return results

    @override
    def prompt(self) -> str:
        names = string.ascii_uppercase
        lines = "\n".join(
            f"{name}: {' '.join(map(str, s))}" for name, s in zip(names, self.sets, strict=False)
        )
        operations = "; then ".join(
            f"{_SET_WORDS[sign]} with {name}"
            for sign, name in zip(self.signs, names[1:], strict=False)
        )
        return (
            f"Sets of numbers:\n{lines}\nStart with A: {operations}. (The difference keeps what "
            "is not in the named set.) Answer with the elements, or with the word empty."
        )

    @override
    def steps(self) -> list[str]:
        return [f"{' '.join(map(str, sorted(result)))}" or "empty" for result in self._results()]

    @override
    def answer(self) -> str:
        return " ".join(map(str, sorted(self._results()[-1]))) or "empty"

    @override
    def accepts(self, text: str) -> bool:
        if text.strip() == "empty":
            return self.answer() == "empty"
        found = integers(text)
        return bool(found) and sorted(found or ()) == sorted(self._results()[-1])


_COLOURS = ("red", "green", "blue", "white")
_THINGS = ("cubes", "balls", "rings", "coins")


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectCounting(Puzzle):
    """What is left in a box; events are (put or take, number, colour, thing)."""

    SIZE: ClassVar[str] = "events"
    events: tuple[tuple[str, int, str, str], ...]
    colour: str
    thing: str

    @override
    @classmethod
    def draw(cls, rng: random.Random, difficulty: int) -> Self:
        inside: dict[tuple[str, str], int] = {}
        events: list[tuple[str, int, str, str]] = []
        while len(events) < 3 + 3 * difficulty:
            kind = (rng.choice(_COLOURS), rng.choice(_THINGS))
            if inside.get(kind) and rng.random() < 0.6:
                number = rng.randint(1, inside[kind])
                inside[kind] -= number
                events.append(("take", number, *kind))
            else:
                number = rng.randint(1, 20)
                inside[kind] = inside.get(kind, 0) + number
                events.append(("put", number, *kind))
        _, _, colour, thing = rng.choice(events)
        asked = rng.choice([(colour, ""), ("", thing), (colour, thing)])
        return cls(events=tuple(events), colour=asked[0], thing=asked[1])

    @property
    @override
    def size(self) -> int:
        return len(self.events)

    def _counts(self) -> list[int]:
        """How many of what is asked for are inside after each event."""
        count, counts = 0, []
        for verb, number, colour, thing in self.events:
            if self.colour in ("", colour) and self.thing in ("", thing):
                count += number if verb == "put" else -number
            counts.append(count)
        return counts

    @override
    def prompt(self) -> str:
        lines = "\n".join(
            f"{'Put in' if verb == 'put' else 'Take out'} {number} {colour} {thing}."
            for verb, number, colour, thing in self.events
        )
        asked = f"{self.colour} {self.thing or 'things'}".strip()
        return f"A box is empty.\n{lines}\nHow many {asked} are inside? Answer with the number."

    @override
    def steps(self) -> list[str]:
        return [f"after {event}: {count}" for event, count in enumerate(self._counts(), 1)]

    @override
    def answer(self) -> str:
        return str(self._counts()[-1])


@dataclass(frozen=True, slots=True, kw_only=True)
class Calendar(Puzzle):
    """Walk through the calendar; moves are (number, days or weeks)."""

    SIZE: ClassVar[str] = "moves"
    start: str
    moves: tuple[tuple[int, str], ...]

    @override
    @classmethod
    def draw(cls, rng: random.Random, difficulty: int) -> Self:
        start = datetime.date(2000, 1, 1) + datetime.timedelta(days=rng.randrange(20_000))
        sizes = {"days": 60, "weeks": 12}
        moves = []
        for _ in range(difficulty):
            unit = rng.choice(list(sizes))
            moves.append((rng.choice((1, -1)) * rng.randint(2, sizes[unit]), unit))
        return cls(start=start.isoformat(), moves=tuple(moves))

    @property
    @override
    def size(self) -> int:
        return len(self.moves)

    def _dates(self) -> list[datetime.date]:
        dates = [datetime.date.fromisoformat(self.start)]
        for number, unit in self.moves:
            days = number * (7 if unit == "weeks" else 1)
            dates.append(dates[-1] + datetime.timedelta(days=days))
        return dates[1:]

    @override
    def prompt(self) -> str:
        moves = ", ".join(
            f"go {'forward' if number > 0 else 'back'} {abs(number)} {unit}"
            for number, unit in self.moves
        )
        return (
            f"Start at {self.start} (year-month-day): {moves}. Answer with the date you arrive "
            "at, in the same form, and its day of the week, like 2001-02-03 saturday."
        )

    @override
    def steps(self) -> list[str]:
        return [f"{date.isoformat()}" for date in self._dates()]

    @override
    def answer(self) -> str:
        date = self._dates()[-1]
        weekdays = ["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"]
        return f"{date.isoformat()} {weekdays[date.weekday()]}"

    @override
    def accepts(self, text: str) -> bool:
        return text.lower().replace(",", " ").split() == self.answer().split()
