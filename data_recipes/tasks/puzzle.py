"""What a puzzle is (drawn, told, solved step by step, checked) and how a family is made of one.

A puzzle may have several solutions; its checker tests the rules that the prompt states, so that
every solution is accepted and not only the one the puzzle was built from.
"""

import random
import string
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, Self

from pydantic import TypeAdapter

from m1.data_recipes.tasks.answers import is_readable, tokens
from m1.data_recipes.tasks.task import Domain, Outcome, Problem, Task

MAXIMUM_DIFFICULTY = 10
"""Ours: ten steps from what a child does to what a patient adult does; see `calibrate`."""


class Puzzle(ABC):
    """One puzzle with a solution; subclasses are frozen dataclasses of plain values.

    `SIZE` names in words what `size` counts; it grows with the difficulty.
    """

    __slots__ = ()
    SIZE: ClassVar[str]

    @classmethod
    @abstractmethod
    def draw(cls, rng: random.Random, difficulty: int) -> Self:
        """A solvable puzzle of a difficulty from 1 to `MAXIMUM_DIFFICULTY`."""

    @property
    @abstractmethod
    def size(self) -> int:
        """How much there is to do."""

    @abstractmethod
    def prompt(self) -> str:
        """The rules, the puzzle and the form of the answer, in words."""

    @abstractmethod
    def steps(self) -> list[str]:
        """A written-out way to `answer`, or its proof, a line per step."""

    @abstractmethod
    def answer(self) -> str:
        """One right answer; no line of it begins with `= `, which ends a thought."""

    def accepts(self, text: str) -> bool:
        """Whether `text`, short plain ASCII, solves the puzzle; by default only `answer` does."""
        return tokens(text) == tokens(self.answer())


@cache
def _codec(kind: type[Puzzle]) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


@dataclass(frozen=True, slots=True, kw_only=True)
class PuzzleFamily:
    """The family of all puzzles of one kind."""

    name: str
    kind: type[Puzzle]
    domain: Domain = "logic"
    maximum_difficulty: int = MAXIMUM_DIFFICULTY

    def make(self, rng: random.Random, *, difficulty: int) -> Problem:
        """A puzzle with its facts as JSON, so that a stored task can be checked anywhere."""
        puzzle = self.kind.draw(rng, difficulty)
        return Problem(
            prompt=puzzle.prompt(),
            answer=puzzle.answer(),
            size=puzzle.size,
            puzzle=_codec(self.kind).dump_json(puzzle).decode(),
        )

    def puzzle_of(self, task: Task) -> Puzzle:
        """The puzzle that a task was made from."""
        puzzle: Puzzle = _codec(self.kind).validate_json(task.puzzle)
        return puzzle

    def solution(self, task: Task, rng: random.Random, *, noise: float) -> str:
        """The steps, then `=` and the answer; a spoilt line has one character exchanged."""
        puzzle = self.puzzle_of(task)
        *steps, answer = (_spoilt(line, rng, noise) for line in (*puzzle.steps(), puzzle.answer()))
        return "\n".join([*steps, f"= {answer}"])

    def judge(self, task: Task, answer: str) -> Outcome:
        """By the rules of the puzzle; unreadable text fails unread."""
        is_right = is_readable(answer) and self.puzzle_of(task).accepts(answer)
        return "pass" if is_right else "fail"


def _spoilt(line: str, rng: random.Random, noise: float) -> str:
    """The line with probability 1 - noise, else with one letter or digit of it exchanged.

    A line without any loses a character instead.
    """
    if noise <= 0.0 or rng.random() >= noise:
        return line
    places = [place for place, character in enumerate(line) if character.isalnum()]
    place = rng.choice(places or range(len(line)))
    alphabet = string.digits if line[place].isdigit() else string.ascii_letters
    return line[:place] + (rng.choice(alphabet) if places else "") + line[place + 1 :]
