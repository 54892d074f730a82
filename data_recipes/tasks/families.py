"""Verifiable tasks: a fold with blanks to fill, one operator per family.

`3>4=?>1=?` asks for the running maximum; the thought is the same text with every `?` filled,
`3>4=4>1=4`, and the answer is the last value. A small model can copy the prompt and only has to
decide the digits after `=`; modular arithmetic and mixed operators it does not learn (measured).
Checking is a string comparison: model text is never evaluated.
"""

import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

from m1.data_recipes.chat import Response
from m1.infra.errors import InvalidSettingError

Domain = Literal["maths", "logic", "code"]
Split = Literal["sft", "reinforce", "heldout"]
Outcome = Literal["pass", "fail", "policy_timeout", "infra_error"]

MAXIMUM_ANSWER_CHARACTERS = 256
MAXIMUM_DIFFICULTY = 10_000
_ASCII_WHITESPACE = " \t\r\n"
_SPLIT_OF_EIGHTH: tuple[Split, ...] = ("sft",) * 5 + ("reinforce",) * 2 + ("heldout",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One problem with its only right answer; `difficulty` is the number of blanks."""

    id: str
    domain: Domain
    family: str
    prompt: str
    answer: str
    difficulty: int
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What the checker says. `correctness` and `format` are 0.0 or 1.0."""

    outcome: Outcome
    correctness: float
    format: float


class Family(Protocol):
    """A kind of problem that can be drawn, solved and checked without end."""

    @property
    def name(self) -> str:
        """Unique name, as in the presets."""
        ...

    @property
    def domain(self) -> Domain:
        """Which part of the curriculum it belongs to."""
        ...

    def make(self, rng: random.Random, *, difficulty: int) -> tuple[str, str, int]:
        """A prompt, its answer, and the number of steps."""
        ...

    def solution(self, task: Task, rng: random.Random, *, noise: float) -> str:
        """A thought; each written step is replaced by a random value with probability `noise`."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class FoldFamily:
    """A left fold over digits.

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

    def make(self, rng: random.Random, *, difficulty: int) -> tuple[str, str, int]:
        """A prompt with `difficulty` blanks, its answer, and the number of blanks."""
        state = rng.choice(self.starts)
        prompt = str(state)
        for _ in range(difficulty):
            operand = rng.randrange(10)
            state = self.step(state, operand)
            prompt += f"{self.symbol}{operand}=?"
        return prompt, str(state), difficulty

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


def _any_high(state: int, operand: int) -> int:
    return int(bool(state) or operand >= 8)


def _count_high(state: int, operand: int) -> int:
    return state + int(operand >= 5)


_DIGITS = tuple(range(10))

FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        FoldFamily(
            name="max_fold", domain="maths", symbol=">", starts=_DIGITS, states=_DIGITS, step=max
        ),
        FoldFamily(
            name="min_fold", domain="maths", symbol="<", starts=_DIGITS, states=_DIGITS, step=min
        ),
        FoldFamily(
            name="any_high",
            domain="logic",
            symbol="|",
            starts=(0,),
            states=(0, 1),
            step=_any_high,
        ),
        FoldFamily(
            name="count_high",
            domain="code",
            symbol=";",
            starts=(0,),
            states=_DIGITS,
            step=_count_high,
        ),
    )
}
"""Every family by name. The numbers (8 and 5 as `high`) are ours: answers stay balanced."""


def family_named(name: str) -> Family:
    """The family called `name`.

    Raises:
        InvalidSettingError: there is none.
    """
    if name not in FAMILIES:
        raise InvalidSettingError(field="family", value=name, accepted=", ".join(FAMILIES))
    return FAMILIES[name]


def answer_of(thought: str) -> str:
    """The last value written in a thought: what the cold-start sample answers."""
    return thought.rpartition("=")[2]


def split_of(prompt: str) -> Split:
    """The split that owns `prompt`, whatever the seed: 5/8, 2/8 and 1/8 of all prompts."""
    digest = hashlib.blake2b(prompt.encode(), digest_size=8, person=b"m1-split").digest()
    return _SPLIT_OF_EIGHTH[int.from_bytes(digest) % 8]


def make_tasks(family: str, *, count: int, difficulty: int, seed: int, split: Split) -> list[Task]:
    """`count` different tasks of one split, always the same for the same arguments.

    Raises:
        InvalidSettingError: unknown family, difficulty out of range, or fewer different prompts
            of that difficulty exist than asked for.
    """
    source = family_named(family)
    if not 1 <= difficulty <= MAXIMUM_DIFFICULTY:
        raise InvalidSettingError(
            field="difficulty", value=difficulty, accepted=f"1 to {MAXIMUM_DIFFICULTY}"
        )
    rng = random.Random(f"{family}/{difficulty}/{split}/{seed}")  # noqa: S311  not for secrets
    found: dict[str, Task] = {}
    for _ in range(64 * count + 4096):  # 8x for the smallest split, 8x for repeated draws
        if len(found) >= count:
            break
        prompt, answer, _steps = source.make(rng, difficulty=difficulty)
        if prompt in found or split_of(prompt) != split:
            continue
        found[prompt] = Task(
            id=task_id(family, prompt),
            domain=source.domain,
            family=family,
            prompt=prompt,
            answer=answer,
            difficulty=difficulty,
            seed=seed,
        )
    if len(found) < count:
        accepted = f"up to about {len(found)} for {family} of difficulty {difficulty} in {split}"
        raise InvalidSettingError(field="count", value=count, accepted=accepted)
    return list(found.values())


def task_id(family: str, prompt: str) -> str:
    """Stable id of a problem: family and a digest of its prompt."""
    return f"{family}-{hashlib.blake2b(prompt.encode(), digest_size=8).hexdigest()}"


def verify(task: Task, response: Response) -> Verdict:
    """Compare the stripped answer with the right one, character by character.

    Only a well-formed response can pass: otherwise it is unclear what the answer is. Costs
    nothing for hostile answers: longer than `MAXIMUM_ANSWER_CHARACTERS` fails unread.
    """
    form = float(response.well_formed)
    is_short = len(response.answer) <= MAXIMUM_ANSWER_CHARACTERS
    is_right = is_short and response.answer.strip(_ASCII_WHITESPACE) == task.answer
    if response.well_formed and is_right:
        return Verdict(outcome="pass", correctness=1.0, format=form)
    return Verdict(outcome="fail", correctness=0.0, format=form)
