"""Puzzles on statements: knights and knaves, web of lies, satisfiability, ranking, seating."""

import random
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Literal, Self

from typing_extensions import override

from m1.data_recipes.tasks.answers import integers, labels, tokens
from m1.data_recipes.tasks.puzzle import Puzzle

KNIGHT, KNAVE = "knight", "knave"


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """What one islander says about `first` and `second`."""

    speaker: str
    kind: Literal["is_knave", "same", "different", "one_knave"]
    first: str
    second: str

    def is_true(self, knights: Mapping[str, bool]) -> bool:
        """Whether the claim holds when these islanders are knights."""
        a, b = knights[self.first], knights[self.second]
        return {"is_knave": not a, "same": a == b, "different": a != b, "one_knave": not (a and b)}[
            self.kind
        ]

    def __str__(self) -> str:
        pair = f"{self.first} and {self.second}"
        words = {
            "is_knave": f"{self.first} is a knave",
            "same": f"{pair} are of the same kind",
            "different": f"{pair} are of different kinds",
            "one_knave": f"at least one of {pair} is a knave",
        }
        return f"{self.speaker} says: {words[self.kind]}."


@dataclass(frozen=True, slots=True, kw_only=True)
class KnightsAndKnaves(Puzzle):
    """Knights speak the truth, knaves lie; `kinds` says who is what."""

    SIZE: ClassVar[str] = "islanders"
    claims: tuple[Claim, ...]
    kinds: dict[str, str]

    @override
    @classmethod
    def draw(cls, rng: random.Random, difficulty: int) -> Self:
        names = string.ascii_uppercase[: 3 + difficulty]
        knights = {name: rng.random() < 0.5 for name in names}
        claims = []
        for speaker in [*names, *rng.sample(names, len(names) // 2)]:
            claim = _claim(rng, speaker, names)
            while claim.is_true(knights) != knights[speaker]:
                claim = _claim(rng, speaker, names)
            claims.append(claim)
        kinds = {name: KNIGHT if is_knight else KNAVE for name, is_knight in knights.items()}
        return cls(claims=tuple(claims), kinds=kinds)

    @property
    @override
    def size(self) -> int:
        return len(self.kinds)

    @override
    def prompt(self) -> str:
        return (
            "Every islander is a knight, who always speaks the truth, or a knave, who always "
            "lies.\n" + "\n".join(map(str, self.claims)) + "\nWho is what, so that all of this "
            "fits? Answer like A:knight B:knave, all islanders."
        )

    @override
    def steps(self) -> list[str]:
        knights = {name: kind == KNIGHT for name, kind in self.kinds.items()}
        return [
            f"{claim} {'True' if claim.is_true(knights) else 'False'}, {claim.speaker} is a "
            f"{self.kinds[claim.speaker]}"
            for claim in self.claims
        ]

    @override
    def answer(self) -> str:
        return " ".join(f"{name}:{kind}" for name, kind in self.kinds.items())

    @override
    def accepts(self, text: str) -> bool:
        found = labels(text.upper(), list(self.kinds))
        if found is None or not set(found.values()) <= {KNIGHT.upper(), KNAVE.upper()}:
            return False
        knights = {name: kind == KNIGHT.upper() for name, kind in found.items()}
        return all(claim.is_true(knights) == knights[claim.speaker] for claim in self.claims)


def _claim(rng: random.Random, speaker: str, names: str) -> Claim:
    first, second = rng.sample([name for name in names if name != speaker], 2)
    kind: Literal["is_knave", "same", "different", "one_knave"] = rng.choice(
        ("is_knave", "same", "different", "one_knave")
    )
    return Claim(speaker=speaker, kind=kind, first=first, second=second)


@dataclass(frozen=True, slots=True, kw_only=True)
class WebOfLies(Puzzle):
    """A chain of statements about the one before: who tells the truth? `claims`: who, says so."""

    SIZE: ClassVar[str] = "statements"
    first_is_truthful: bool
    claims: tuple[tuple[str, str, bool], ...]

    @override
    @classmethod
    def draw(cls, rng: random.Random, difficulty: int) -> Self:
        names = rng.sample(string.ascii_uppercase, 4 + 2 * difficulty)
        claims = tuple((b, a, rng.random() < 0.5) for a, b in pairwise(names))
        return cls(first_is_truthful=rng.random() < 0.5, claims=claims)

    @property
    @override
    def size(self) -> int:
        return len(self.claims)

    def _truthful(self) -> dict[str, bool]:
        known = {self.claims[0][1]: self.first_is_truthful}
        for speaker, about, says_truthful in self.claims:
            known[speaker] = known[about] == says_truthful
        return known

    @override
    def prompt(self) -> str:
        first = self.claims[0][1]
        lines = "\n".join(
            f"{speaker} says that {about} {'tells the truth' if says else 'lies'}."
            for speaker, about, says in self.claims
        )
        return (
            f"Everyone either always tells the truth or always lies. {first} "
            f"{'tells the truth' if self.first_is_truthful else 'lies'}.\n{lines}\n"
            "Answer with all who tell the truth, separated by spaces, or with the word nobody."
        )

    @override
    def steps(self) -> list[str]:
        return [f"{name} {'truth' if ok else 'lie'}" for name, ok in self._truthful().items()]

    @override
    def answer(self) -> str:
        return " ".join(sorted(name for name, ok in self._truthful().items() if ok)) or "nobody"

    @override
    def accepts(self, text: str) -> bool:
        return sorted(tokens(text)) == tokens(self.answer())


@dataclass(frozen=True, slots=True, kw_only=True)
class Satisfiability(Puzzle):
    """Truth values that make every clause true; a literal is a variable's number or minus it."""

    SIZE: ClassVar[str] = "clauses"
    clauses: tuple[tuple[int, int, int], ...]
    values: tuple[int, ...]

    @override
    @classmethod
    def draw(cls, rng: random.Random, difficulty: int) -> Self:
        variables = 3 + difficulty
        values = tuple(rng.randrange(2) for _ in range(variables))
        clauses: list[tuple[int, int, int]] = []
        while len(clauses) < 4 * variables:
            a, b, c = (v * rng.choice((1, -1)) for v in rng.sample(range(1, variables + 1), 3))
            if _is_met((a, b, c), values):
                clauses.append((a, b, c))
        return cls(clauses=tuple(clauses), values=values)

    @property
    @override
    def size(self) -> int:
        return len(self.clauses)

    @override
    def prompt(self) -> str:
        clauses = "\n".join(
            " or ".join(f"{'not ' if lit < 0 else ''}x{abs(lit)}" for lit in clause)
            for clause in self.clauses
        )
        return (
            f"Make all of these true:\n{clauses}\nAnswer with the values of x1 to "
            f"x{len(self.values)} in order, 1 for true and 0 for false, separated by spaces."
        )

    @override
    def steps(self) -> list[str]:
        lines = []
        for clause in self.clauses:
            literal = next(lit for lit in clause if _is_met((lit,), self.values))
            lines.append(f"{'not ' if literal < 0 else ''}x{abs(literal)} holds")
        return lines

    @override
    def answer(self) -> str:
        return " ".join(map(str, self.values))

    @override
    def accepts(self, text: str) -> bool:
        values = integers(text)
        if values is None or len(values) != len(self.values) or not set(values) <= {0, 1}:
            return False
        return all(_is_met(clause, values) for clause in self.clauses)


def _is_met(clause: Sequence[int], values: Sequence[int]) -> bool:
    return any(values[abs(literal) - 1] == (literal > 0) for literal in clause)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranking(Puzzle):
    """An order from comparisons, each (before, after)."""

    SIZE: ClassVar[str] = "items"
    comparisons: tuple[tuple[str, str], ...]
    order: tuple[str, ...]

    @override
    @classmethod
    def draw(cls, rng: random.Random, difficulty: int) -> Self:
        order = rng.sample(string.ascii_uppercase, 4 + difficulty)
        known = list(pairwise(order))
        known += [(order[i], order[i + 2]) for i in rng.sample(range(len(order) - 2), 2)]
        return cls(comparisons=tuple(rng.sample(known, len(known))), order=tuple(order))

    @property
    @override
    def size(self) -> int:
        return len(self.order)

    @override
    def prompt(self) -> str:
        lines = "\n".join(f"{a} came before {b}." for a, b in self.comparisons)
        return f"{lines}\nAnswer with all of them in order, the first one first."

    @override
    def steps(self) -> list[str]:
        return [f"{a} before {b}" for a, b in pairwise(self.order)]

    @override
    def answer(self) -> str:
        return " ".join(self.order)

    @override
    def accepts(self, text: str) -> bool:
        order = tokens(text)
        place = {name: index for index, name in enumerate(order)}
        return sorted(order) == sorted(self.order) and all(
            place[a] < place[b] for a, b in self.comparisons
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Seating(Puzzle):
    """A round table; rules are (kind, guest, guest): clockwise, beside, apart or opposite."""

    SIZE: ClassVar[str] = "guests"
    rules: tuple[tuple[str, str, str], ...]
    order: tuple[str, ...]

    @override
    @classmethod
    def draw(cls, rng: random.Random, difficulty: int) -> Self:
        seats = 4 + difficulty
        names = string.ascii_uppercase[:seats]
        order = ("A", *rng.sample(names[1:], seats - 1))
        rules: set[tuple[str, str, str]] = set()
        for seat, name in enumerate(order):
            gap = rng.randrange(1, seats)
            other = order[(seat + gap) % seats]
            kinds = ["beside" if gap in (1, seats - 1) else "apart"]
            kinds += ["opposite"] * (2 * gap == seats)
            rules.add((rng.choice(kinds), name, other))
            if rng.random() < 0.6:
                rules.add(("clockwise", name, order[(seat + 1) % seats]))
        return cls(rules=tuple(rng.sample(sorted(rules), len(rules))), order=order)

    @property
    @override
    def size(self) -> int:
        return len(self.order)

    @staticmethod
    def _holds(kind: str, gap: int, seats: int) -> bool:
        """Whether a guest `gap` seats clockwise of another fits the kind."""
        is_beside = gap in (1, seats - 1)
        return {
            "clockwise": gap == 1,
            "beside": is_beside,
            "apart": not is_beside,
            "opposite": 2 * gap == seats,
        }[kind]

    @override
    def prompt(self) -> str:
        words = {
            "clockwise": "{1} sits directly clockwise of {0}.",
            "beside": "{0} and {1} sit side by side.",
            "apart": "{0} and {1} do not sit side by side.",
            "opposite": "{0} and {1} sit opposite each other.",
        }
        rules = "\n".join(words[kind].format(a, b) for kind, a, b in self.rules)
        return (
            f"{', '.join(sorted(self.order))} sit evenly around a round table.\n{rules}\n"
            "Answer with all of them clockwise, beginning with A."
        )

    @override
    def steps(self) -> list[str]:
        return [f"seat {seat}: {name}" for seat, name in enumerate(self.order, 1)]

    @override
    def answer(self) -> str:
        return " ".join(self.order)

    @override
    def accepts(self, text: str) -> bool:
        order, seats = tokens(text), len(self.order)
        if sorted(order) != sorted(self.order) or order[0] != "A":
            return False
        seat_of = {name: seat for seat, name in enumerate(order)}
        return all(
            self._holds(kind, (seat_of[b] - seat_of[a]) % seats, seats) for kind, a, b in self.rules
        )
