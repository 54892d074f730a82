"""Folds with blanks to fill, one operator per family: the tasks a toy model can learn.

`3>4=?>1=?` asks for the running maximum; the thought is the same text with every `?` filled,
`3>4=4>1=4`, and the answer is the last value. A small model can copy the prompt and only has to
decide the digits after `=`; modular arithmetic and mixed operators it does not learn (measured).
Checking is a string comparison: model text is never evaluated.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass

from m1.data_recipes.tasks.task import Domain, Outcome, Problem, Task

MAXIMUM_ANSWER_CHARACTERS = 256
_ASCII_WHITESPACE = " \t\r\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class FoldFamily:
    """A left fold over digits; the difficulty is the number of blanks.

    Args:
        symbol: stands before each operand.
        starts: possible first values.
        states: values that a noisy step may write.
        step: state and operand digit to the new state.
    """

    name: str
    domain: Domain
    symbol: str
    starts: tuple[int, ...]
    states: tuple[int, ...]
    step: Callable[[int, int], int]
    maximum_difficulty: int = 10_000

    def make(self, rng: random.Random, *, difficulty: int) -> Problem:
        """A prompt with `difficulty` blanks and its answer."""
        state = rng.choice(self.starts)
        prompt = str(state)
        for _ in range(difficulty):
            operand = rng.randrange(10)
            state = self.step(state, operand)
            prompt += f"{self.symbol}{operand}=?"
        return Problem(prompt=prompt, answer=str(state), size=difficulty)

    def solution(self, task: Task, rng: random.Random, *, noise: float) -> str:
        """The prompt with every blank filled; errors are carried on, as a reasoner would."""
        first, *operands = task.prompt.replace("=?", "").split(self.symbol)
        state = int(first)
        thought = first
        for operand in operands:
            state = self.step(state, int(operand))
            if noise > 0.0 and rng.random() < noise:
                state = rng.choice(self.states)
            thought += f"{self.symbol}{operand}={state}"
        return thought

    def judge(self, task: Task, answer: str) -> Outcome:
        """Character by character; a longer answer than the bound fails unread."""
        is_short = len(answer) <= MAXIMUM_ANSWER_CHARACTERS
        return "pass" if is_short and answer.strip(_ASCII_WHITESPACE) == task.answer else "fail"


def _any_high(state: int, operand: int) -> int:
    return int(bool(state) or operand >= 8)


def _count_high(state: int, operand: int) -> int:
    return state + int(operand >= 5)


_DIGITS = tuple(range(10))

FOLDS: tuple[FoldFamily, ...] = (
    FoldFamily(
        name="max_fold", domain="maths", symbol=">", starts=_DIGITS, states=_DIGITS, step=max
    ),
    FoldFamily(
        name="min_fold", domain="maths", symbol="<", starts=_DIGITS, states=_DIGITS, step=min
    ),
    FoldFamily(
        name="any_high", domain="logic", symbol="|", starts=(0,), states=(0, 1), step=_any_high
    ),
    FoldFamily(
        name="count_high", domain="code", symbol=";", starts=(0,), states=_DIGITS, step=_count_high
    ),
)
"""The numbers (8 and 5 as `high`) are ours: answers stay balanced."""
