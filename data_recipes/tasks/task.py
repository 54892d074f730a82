"""The words every kind of task shares: what a task, a verdict and a family of tasks are."""

import random
from dataclasses import dataclass
from typing import Literal, Protocol

Domain = Literal["maths", "logic", "code", "instructions"]
Split = Literal["sft", "reinforce", "heldout"]
Outcome = Literal["pass", "fail", "policy_timeout", "infra_error"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One problem with a right answer, maybe one of several.

    Args:
        difficulty: what was asked of the generator.
        puzzle: what the checker needs beyond the answer, as JSON; empty where nothing.
    """

    id: str
    domain: Domain
    family: str
    prompt: str
    answer: str
    difficulty: int
    seed: int
    puzzle: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What the checker says. `correctness` and `format` are from 0.0 to 1.0.

    `policy_timeout`: the answer itself used up what a check may cost; it earns nothing.
    `infra_error`: we could not judge; the sample must be left out, it never counts as 0.
    """

    outcome: Outcome
    correctness: float
    format: float

    @property
    def is_masked(self) -> bool:
        """Whether the sample must be left out of rewards, baselines, updates and pass rates."""
        return self.outcome == "infra_error"


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """What a family draws. `size` is the family's own measure of how much there is to do."""

    prompt: str
    answer: str
    size: int
    puzzle: str = ""


class Judge(Protocol):
    """Says whether an answer to a task is right."""

    def judge(self, task: Task, answer: str) -> Outcome:
        """The outcome for any text, bounded in time and size."""
        ...


class Family(Judge, Protocol):
    """A kind of problem that can be drawn, solved and checked without end."""

    @property
    def name(self) -> str:
        """Unique name, as in the presets."""
        ...

    @property
    def domain(self) -> Domain:
        """Which part of the curriculum it belongs to."""
        ...

    @property
    def maximum_difficulty(self) -> int:
        """Difficulties from 1 to this one can be drawn."""
        ...

    def make(self, rng: random.Random, *, difficulty: int) -> Problem:
        """A problem; everything random comes from `rng`."""
        ...

    def solution(self, task: Task, rng: random.Random, *, noise: float) -> str:
        """A thought; each written step is spoilt with probability `noise`.

        Ends with `=` and what the thought arrives at (see `families.answer_of`).
        """
        ...
