"""Programming tasks: a statement, a hidden test suite, and a program judged by running it.

Nothing here runs a program. Whoever has a sandbox gives it as a `SuiteRunner`; without one there
are no code families at all. Suites come in two styles, as in programming contests: standard input
to standard output, and a function with arguments and a result. The generated problems chain list
operations, so that there are endlessly many; their expected results are worked out by our own
functions, never by the text of the reference program.
"""

import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import ClassVar, Protocol, Self

from typing_extensions import override

from m1.data_recipes.tasks.puzzle import Puzzle, PuzzleFamily
from m1.data_recipes.tasks.task import Outcome, Task

MAXIMUM_PROGRAM_CHARACTERS = 100_000  # ours
_FENCE = re.compile(r"^```(?:python|py)?[ \t]*$", re.MULTILINE)

Values = list[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class TextCase:
    """Standard input, and the standard output it must lead to (white space at ends ignored)."""

    stdin: str
    expected: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CallCase:
    """Arguments of a function, and the value it must return; JSON values."""

    function: str
    arguments: tuple[list[int], ...]
    expected: list[int]


Suite = tuple[TextCase | CallCase, ...]


class SuiteRunner(Protocol):
    """Runs model-written programs where they can do no harm."""

    def run(self, source: str, suite: Suite) -> Outcome:
        """`pass` when every case passes. Bounded; never raises for anything a program does."""
        ...


def program_of(text: str) -> str | None:
    """The last fenced block of a text, else all of it; None where too long or empty."""
    if len(text) > MAXIMUM_PROGRAM_CHARACTERS:
        return None
    fences = list(_FENCE.finditer(text))
    if len(fences) >= 2:
        text = text[fences[-2].end() : fences[-1].start()]
    return text.strip() + "\n" if text.strip() else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One step on a list of whole numbers: in words, in Python, and as our own function.

    `{}` in words and source stands for the operation's number.
    """

    words: str
    source: str
    apply: Callable[[Values, int], Values]


def _blocks(values: Values, size: int) -> list[Values]:
    return [values[start : start + size] for start in range(0, len(values), size)]


_OPERATIONS: dict[str, Operation] = {
    "drop_multiples": Operation(
        words="remove every multiple of {}",
        source="[v for v in values if v % {} != 0]",
        apply=lambda values, k: [v for v in values if v % k != 0],
    ),
    "scale": Operation(
        words="multiply every number by {}",
        source="[v * {} for v in values]",
        apply=lambda values, k: [v * k for v in values],
    ),
    "remainders": Operation(
        words="replace every number by its remainder (0 or more) when divided by {}",
        source="[v % {} for v in values]",
        apply=lambda values, k: [v % k for v in values],
    ),
    "running_sums": Operation(
        words="replace every number by the sum of all numbers up to it, plus {}",
        source="[sum(values[: i + 1]) + {} for i in range(len(values))]",
        apply=lambda values, k: [total + k for total in accumulate(values)],
    ),
    "differences": Operation(
        words="replace the list by {} times the differences between neighbours, right minus left",
        source="[{} * (b - a) for a, b in zip(values, values[1:])]",
        apply=lambda values, k: [k * (b - a) for a, b in pairwise(values)],
    ),
    "reverse_blocks": Operation(
        words="reverse every block of {} numbers, counted from the left; the last may be shorter",
        source="[v for i in range(0, len(values), {0}) for v in values[i : i + {0}][::-1]]",
        apply=lambda values, k: [v for block in _blocks(values, k) for v in block[::-1]],
    ),
    "block_maxima": Operation(
        words="replace every block of {} numbers (the last may be shorter) by its largest",
        source="[max(values[i : i + {0}]) for i in range(0, len(values), {0})]",
        apply=lambda values, k: [max(block) for block in _blocks(values, k)],
    ),
    "rotate": Operation(
        words="move the first {} numbers to the end (fewer where there are fewer)",
        source="values[{0}:] + values[:{0}]",
        apply=lambda values, k: values[k:] + values[:k],
    ),
    "sort_by_remainder": Operation(
        words="sort by the remainder when divided by {}, equal ones by size",
        source="sorted(values, key=lambda v: (v % {}, v))",
        apply=lambda values, k: sorted(values, key=lambda v: (v % k, v)),
    ),
    "first_seen": Operation(
        words="keep only the first of equal numbers, then append {}",
        source="list(dict.fromkeys(values)) + [{}]",
        apply=lambda values, k: [*dict.fromkeys(values), k],
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ListProgram(Puzzle):
    """A chain of list operations (name, number) to program, and inputs to test it with."""

    SIZE: ClassVar[str] = "operations"
    FUNCTION: ClassVar[str] = "solve"
    as_function: ClassVar[bool] = False
    chain: tuple[tuple[str, int], ...]
    inputs: tuple[list[int], ...]

    @override
    @classmethod
    def draw(cls, rng: random.Random, difficulty: int) -> Self:
        chain = tuple((rng.choice(list(_OPERATIONS)), rng.randint(2, 9)) for _ in range(difficulty))
        drawn = [[rng.randint(-50, 50) for _ in range(rng.choice((2, 5, 20)))] for _ in range(6)]
        edges = [[], [rng.randint(1, 9)], [rng.randint(-9, 9)] * 12, [0, -1, 1, 10**9]]
        return cls(chain=chain, inputs=tuple(edges + drawn))

    @property
    @override
    def size(self) -> int:
        return len(self.chain)

    def _result(self, values: Values) -> Values:
        for name, number in self.chain:
            values = _OPERATIONS[name].apply(values, number)
        return values

    def suite(self) -> Suite:
        """The hidden cases: edges first, then random lists."""
        if self.as_function:
            return tuple(
                CallCase(function=self.FUNCTION, arguments=(values,), expected=self._result(values))
                for values in self.inputs
            )
        return tuple(
            TextCase(
                stdin=" ".join(map(str, values)) + "\n",
                expected=" ".join(map(str, self._result(values))),
            )
            for values in self.inputs
        )

    def _words(self) -> list[str]:
        return [_OPERATIONS[name].words.format(number) for name, number in self.chain]

    @override
    def prompt(self) -> str:
        steps = "\n".join(f"{place}. {words}" for place, words in enumerate(self._words(), 1))
        form = (
            f"Write a Python function {self.FUNCTION}(values) that takes a list of whole numbers, "
            "maybe empty, and returns the list that remains."
            if self.as_function
            else "Write a Python program that reads one line of whole numbers separated by "
            "spaces, maybe none, and prints the numbers that remain in one line."
        )
        return f"{form} The numbers go through these steps, in order:\n{steps}"

    @override
    def steps(self) -> list[str]:
        return [f"step {place}: {line.strip()}" for place, line in enumerate(self._lines(), 1)]

    def _lines(self) -> list[str]:
        return [
            f"    values = {_OPERATIONS[name].source.format(number)}" for name, number in self.chain
        ]

    @override
    def answer(self) -> str:
        function = "\n".join([f"def {self.FUNCTION}(values):", *self._lines(), "    return values"])
        if self.as_function:
            return function
        return f"{function}\n\nprint(*{self.FUNCTION}([int(v) for v in input().split()]))"


@dataclass(frozen=True, slots=True, kw_only=True)
class ListFunction(ListProgram):
    """The same problems in function style."""

    as_function: ClassVar[bool] = True


@dataclass(frozen=True, slots=True, kw_only=True)
class CodeFamily(PuzzleFamily):
    """Generated programming problems, judged by running the hidden suite in a sandbox."""

    kind: type[ListProgram]
    runner: SuiteRunner

    @override
    def judge(self, task: Task, answer: str) -> Outcome:
        source = program_of(answer)
        if source is None:
            return "fail"
        puzzle = self.puzzle_of(task)
        assert isinstance(puzzle, ListProgram)
        return self.runner.run(source, puzzle.suite())


def code_families(runner: SuiteRunner) -> tuple[CodeFamily, ...]:
    """The programming families, for whoever can run programs safely."""
    return (
        CodeFamily(name="list_program", kind=ListProgram, domain="code", runner=runner),
        CodeFamily(name="list_function", kind=ListFunction, domain="code", runner=runner),
    )
