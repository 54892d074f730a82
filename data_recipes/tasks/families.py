"""Every task family by name, problems drawn by split, and the one door to every checker.

Splits are decided by the prompt alone, so that no seed, difficulty or machine can move a problem
from training into evaluation.
"""

import hashlib
import random

from m1.data_recipes.chat import Response
from m1.data_recipes.tasks.folds import FOLDS
from m1.data_recipes.tasks.instructions import INSTRUCTION_FAMILIES
from m1.data_recipes.tasks.logic import LOGIC_FAMILIES
from m1.data_recipes.tasks.maths import MATHS_FAMILIES, GivenMaths
from m1.data_recipes.tasks.task import (
    Domain,
    Family,
    Judge,
    Outcome,
    Problem,
    Split,
    Task,
    Verdict,
)
from m1.infra.errors import InvalidSettingError

_SPLIT_OF_EIGHTH: tuple[Split, ...] = ("sft",) * 5 + ("reinforce",) * 2 + ("heldout",)

_EVERY: tuple[Family, ...] = (*FOLDS, *LOGIC_FAMILIES, *MATHS_FAMILIES, *INSTRUCTION_FAMILIES)

FAMILIES: dict[str, Family] = {family.name: family for family in _EVERY}
"""Every family by name, as presets and recipes name them."""

JUDGES: dict[str, Judge] = {**FAMILIES, "maths": GivenMaths()}
"""Who judges a task, by its `family`: the families, and judges of tasks that come from data."""


def family_named(name: str) -> Family:
    """The family called `name`.

    Raises:
        InvalidSettingError: there is none.
    """
    if name not in FAMILIES:
        raise InvalidSettingError(field="family", value=name, accepted=", ".join(FAMILIES))
    return FAMILIES[name]


def answer_of(thought: str) -> str:
    """What a thought arrives at: what the cold-start sample answers.

    Everything after the last line that begins with `= `, else after the last `=`.
    """
    _, mark, answer = thought.rpartition("\n= ")
    return (answer if mark else thought.rpartition("=")[2]).strip()


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
    if not 1 <= difficulty <= source.maximum_difficulty:
        accepted = f"1 to {source.maximum_difficulty} for {family}"
        raise InvalidSettingError(field="difficulty", value=difficulty, accepted=accepted)
    rng = random.Random(f"{family}/{difficulty}/{split}/{seed}")  # noqa: S311  not for secrets
    found: dict[str, Task] = {}
    for _ in range(64 * count + 4096):  # 8x for the smallest split, 8x for repeated draws
        if len(found) >= count:
            break
        problem = source.make(rng, difficulty=difficulty)
        if problem.prompt not in found and split_of(problem.prompt) == split:
            found[problem.prompt] = _task(source, problem, difficulty=difficulty, seed=seed)
    if len(found) < count:
        accepted = f"up to about {len(found)} for {family} of difficulty {difficulty} in {split}"
        raise InvalidSettingError(field="count", value=count, accepted=accepted)
    return list(found.values())


def _task(source: Family, problem: Problem, *, difficulty: int, seed: int) -> Task:
    return Task(
        id=task_id(source.name, problem.prompt),
        domain=source.domain,
        family=source.name,
        prompt=problem.prompt,
        answer=problem.answer,
        difficulty=difficulty,
        seed=seed,
        puzzle=problem.puzzle,
    )


def task_id(family: str, prompt: str) -> str:
    """Stable id of a problem: family and a digest of its prompt."""
    return f"{family}-{hashlib.blake2b(prompt.encode(), digest_size=8).hexdigest()}"


def verify(task: Task, response: Response) -> Verdict:
    """The verdict of the task's family on a response.

    Only a well-formed response can pass: otherwise it is unclear what the answer is, and nothing
    is checked. Every checker is bounded in time and size, whatever the text.
    """
    form = float(response.well_formed)
    outcome = JUDGES[task.family].judge(task, response.answer) if form else "fail"
    return Verdict(outcome=outcome, correctness=float(outcome == "pass"), format=form)


__all__ = [
    "FAMILIES",
    "JUDGES",
    "Domain",
    "Family",
    "Judge",
    "Outcome",
    "Problem",
    "Split",
    "Task",
    "Verdict",
    "answer_of",
    "family_named",
    "make_tasks",
    "split_of",
    "task_id",
    "verify",
]
