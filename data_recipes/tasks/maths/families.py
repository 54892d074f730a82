"""Generated maths problems, and the judge of any maths answer, generated or from a data set.

An answer is right when it means the same as the gold (math-verify's rules), or rounds to it where
the gold is a decimal number, or lies within the task's relative tolerance. Gold first: a
comparison is not symmetric (an interval may answer an inequality, not the other way round).
"""

import json
import math
import random
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar, Self

from typing_extensions import override

from m1.data_recipes.tasks.maths.process import Comparer, shared_comparer
from m1.data_recipes.tasks.maths.reading import final_answer, quantity, units_agree
from m1.data_recipes.tasks.puzzle import Puzzle, PuzzleFamily
from m1.data_recipes.tasks.task import Outcome, Task


def judge_maths(
    gold: str,
    text: str,
    *,
    relative_tolerance: float = 0.0,
    comparer: Comparer | None = None,
) -> Outcome:
    """Judge a text by its last boxed answer, or by all of it where nothing is boxed.

    Args:
        gold: LaTeX, boxed or not, with a unit where the problem asks for one.
        text: what the model answered, any length.
        relative_tolerance: share of the gold that a number may be off.
        comparer: defaults to the one of this process.
    """
    answer = final_answer(text)
    if answer is None:
        return "fail"
    wanted, found = quantity(final_answer(gold) or gold), quantity(answer)
    if not units_agree(wanted, found):
        return "fail"
    if found.value == wanted.value:
        return "pass"
    judge = comparer or shared_comparer()
    return judge.compare(wanted.value, found.value, relative_tolerance=relative_tolerance)


@dataclass(frozen=True, slots=True)
class GivenMaths:
    """Judges maths tasks that come from data; `puzzle` may hold `{"relative_tolerance": x}`."""

    def judge(self, task: Task, answer: str) -> Outcome:
        """By the task's answer as the gold."""
        settings = json.loads(task.puzzle or "{}")
        tolerance = float(settings.get("relative_tolerance", 0.0))
        return judge_maths(task.answer, answer, relative_tolerance=tolerance)


@dataclass(frozen=True, slots=True, kw_only=True)
class MathsFamily(PuzzleFamily):
    """Generated problems whose answers are compared by meaning."""

    @override
    def judge(self, task: Task, answer: str) -> Outcome:
        return judge_maths(task.answer, answer)


def _signed(number: int) -> str:
    return f"+ {number}" if number >= 0 else f"- {-number}"


def latex_fraction(value: Fraction) -> str:
    """A fraction in LaTeX, whole numbers plain."""
    if value.denominator == 1:
        return str(value.numerator)
    sign = "-" if value < 0 else ""
    return f"{sign}\\frac{{{abs(value.numerator)}}}{{{value.denominator}}}"


@dataclass(frozen=True, slots=True, kw_only=True)
class FractionSum(Puzzle):
    """Add and subtract fractions."""

    SIZE: ClassVar[str] = "fractions"
    terms: tuple[tuple[int, int], ...]

    @override
    @classmethod
    def draw(cls, rng: random.Random, difficulty: int) -> Self:
        tops = [rng.choice((1, -1)) * rng.randint(1, 12) for _ in range(difficulty + 1)]
        return cls(terms=tuple((top, rng.randint(2, 12)) for top in tops))

    @property
    @override
    def size(self) -> int:
        return len(self.terms)

    @override
    def prompt(self) -> str:
        terms = " + ".join(f"({top}/{bottom})" for top, bottom in self.terms)
        return f"Work out {terms} as a fraction. Put the answer into \\boxed{{}}."

    def _sums(self) -> list[Fraction]:
        sums = [Fraction(0)]
        for top, bottom in self.terms:
            sums.append(sums[-1] + Fraction(top, bottom))
        return sums[1:]

    @override
    def steps(self) -> list[str]:
        return [f"so far {total}" for total in self._sums()]

    @override
    def answer(self) -> str:
        return f"\\boxed{{{latex_fraction(self._sums()[-1])}}}"


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearEquation(Puzzle):
    """Solve nested linear equations: each layer is (factor, summand) around x."""

    SIZE: ClassVar[str] = "layers around x"
    layers: tuple[tuple[int, int], ...]
    root: int

    @override
    @classmethod
    def draw(cls, rng: random.Random, difficulty: int) -> Self:
        layers = tuple((rng.randint(2, 9), rng.randint(-20, 20)) for _ in range(difficulty))
        return cls(layers=layers, root=rng.randint(-30, 30))

    @property
    @override
    def size(self) -> int:
        return len(self.layers)

    def _values(self) -> list[int]:
        values = [self.root]
        for factor, summand in self.layers:
            values.append(factor * values[-1] + summand)
        return values

    @override
    def prompt(self) -> str:
        text = "x"
        for factor, summand in self.layers:
            text = f"({factor}{text} {_signed(summand)})"
        return f"Solve {text[1:-1]} = {self._values()[-1]} for x. Put x into \\boxed{{}}."

    @override
    def steps(self) -> list[str]:
        return [f"the part inside is {value}" for value in self._values()[-2::-1]]

    @override
    def answer(self) -> str:
        return f"\\boxed{{{self.root}}}"


@dataclass(frozen=True, slots=True, kw_only=True)
class PolynomialRoots(Puzzle):
    """All real roots of a polynomial with whole roots."""

    SIZE: ClassVar[str] = "degree"
    factor: int
    roots: tuple[int, ...]

    @override
    @classmethod
    def draw(cls, rng: random.Random, difficulty: int) -> Self:
        roots = sorted(rng.sample(range(-25, 26), 1 + difficulty))
        return cls(factor=rng.randint(2, 30), roots=tuple(roots))

    @property
    @override
    def size(self) -> int:
        return len(self.roots)

    def _coefficients(self) -> list[int]:
        """From the constant upwards."""
        found = [self.factor]
        for root in self.roots:
            found = [a - root * b for a, b in zip([0, *found], [*found, 0], strict=True)]
        return found

    @override
    def prompt(self) -> str:
        powers = ["", "x", *(f"x^{power}" for power in range(2, len(self.roots) + 1))]
        pairs = zip(self._coefficients(), powers, strict=True)
        terms = [f"{_signed(value)}{power}" for value, power in pairs if value]
        polynomial = " ".join(terms[::-1]).removeprefix("+ ")
        return f"Find all roots of {polynomial} = 0. Put them into \\boxed{{}}, with commas."

    @override
    def steps(self) -> list[str]:
        divisors = [f"(x {_signed(-root)}) divides it" for root in self.roots]
        return [f"divide by {self.factor}", *divisors]

    @override
    def answer(self) -> str:
        return f"\\boxed{{{','.join(map(str, self.roots))}}}"


@dataclass(frozen=True, slots=True, kw_only=True)
class CommonMultiple(Puzzle):
    """The least common multiple of several numbers."""

    SIZE: ClassVar[str] = "numbers"
    numbers: tuple[int, ...]

    @override
    @classmethod
    def draw(cls, rng: random.Random, difficulty: int) -> Self:
        return cls(numbers=tuple(rng.randint(4, 120) for _ in range(1 + difficulty)))

    @property
    @override
    def size(self) -> int:
        return len(self.numbers)

    @override
    def prompt(self) -> str:
        numbers = ", ".join(map(str, self.numbers))
        return f"Find the least common multiple of {numbers}. Put it into \\boxed{{}}."

    @override
    def steps(self) -> list[str]:
        count = len(self.numbers)
        return [f"of the first {n}: {math.lcm(*self.numbers[:n])}" for n in range(1, count + 1)]

    @override
    def answer(self) -> str:
        return f"\\boxed{{{math.lcm(*self.numbers)}}}"


@dataclass(frozen=True, slots=True, kw_only=True)
class MeanSpeed(Puzzle):
    """Mean speed over several legs, each (kilometres, minutes); the answer has a unit."""

    SIZE: ClassVar[str] = "legs"
    legs: tuple[tuple[int, int], ...]

    @override
    @classmethod
    def draw(cls, rng: random.Random, difficulty: int) -> Self:
        legs = tuple((rng.randint(2, 400), rng.randint(5, 200)) for _ in range(difficulty))
        way, minutes = sum(way for way, _ in legs), sum(minutes for _, minutes in legs)
        is_tie = 12_000 * way % (2 * minutes) == minutes  # the second decimal could be either
        return cls.draw(rng, difficulty) if is_tie else cls(legs=legs)

    @property
    @override
    def size(self) -> int:
        return len(self.legs)

    @override
    def prompt(self) -> str:
        legs = ", ".join(f"{kilometres} km in {minutes} min" for kilometres, minutes in self.legs)
        return (
            f"A train goes {legs}. What is its mean speed in km/h, with two decimals? Put it "
            "into \\boxed{}."
        )

    def _totals(self) -> tuple[int, int]:
        return sum(way for way, _ in self.legs), sum(minutes for _, minutes in self.legs)

    @override
    def steps(self) -> list[str]:
        way, minutes = self._totals()
        return [f"{way} km in all", f"{minutes} min in all"]

    @override
    def answer(self) -> str:
        way, minutes = self._totals()
        return f"\\boxed{{{60 * way / minutes:.2f}\\text{{ km/h}}}}"


MATHS_FAMILIES: tuple[MathsFamily, ...] = tuple(
    MathsFamily(name=name, kind=kind, domain="maths")
    for name, kind in (
        ("fraction_sum", FractionSum),
        ("linear_equation", LinearEquation),
        ("polynomial_roots", PolynomialRoots),
        ("common_multiple", CommonMultiple),
        ("mean_speed", MeanSpeed),
    )
)
