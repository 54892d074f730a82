"""Claims about the task families and their checker."""

import random

import pytest

from m1.data_recipes.chat import Response
from m1.data_recipes.tasks.families import (
    FAMILIES,
    Split,
    answer_of,
    make_tasks,
    split_of,
    verify,
)
from m1.data_recipes.tasks.folds import FOLDS
from m1.infra.errors import InvalidSettingError

FOLD_NAMES = [family.name for family in FOLDS]
SPLITS: tuple[Split, ...] = ("sft", "reinforce", "heldout")


def _response(answer: str, *, well_formed: bool = True) -> Response:
    return Response(thought="", answer=answer, well_formed=well_formed)


@pytest.mark.parametrize("family", FOLD_NAMES)
@pytest.mark.parametrize("difficulty", [3, 4, 12])
def test_solution_without_noise_always_passes(family: str, difficulty: int) -> None:
    for task in make_tasks(family, count=40, difficulty=difficulty, seed=7, split="heldout"):
        thought = FAMILIES[family].solution(task, random.Random(1), noise=0.0)

        assert "?" not in thought
        assert task.prompt.count("?") == difficulty
        assert verify(task, _response(answer_of(thought))).outcome == "pass"


@pytest.mark.parametrize("family", FOLD_NAMES)
def test_noise_spoils_some_answers_and_is_carried_on(family: str) -> None:
    tasks = make_tasks(family, count=200, difficulty=4, seed=7, split="sft")
    rng = random.Random(5)

    thoughts = [FAMILIES[family].solution(task, rng, noise=0.25) for task in tasks]
    right = sum(answer_of(t) == task.answer for t, task in zip(thoughts, tasks, strict=True))

    assert 0.3 * len(tasks) < right < 0.98 * len(tasks)


def test_examples_of_the_brief() -> None:
    family = FAMILIES["max_fold"]
    task = make_tasks("max_fold", count=1, difficulty=2, seed=1, split="sft")[0]
    first, second, third = task.prompt[0], task.prompt[2], task.prompt[6]
    high = max(first, second)

    thought = family.solution(task, random.Random(0), noise=0.0)

    assert thought == f"{first}>{second}={high}>{third}={max(high, third)}"


@pytest.mark.parametrize("family", FAMILIES)
def test_splits_are_disjoint_and_repeatable(family: str) -> None:
    made = {
        split: make_tasks(family, count=8, difficulty=4, seed=2, split=split) for split in SPLITS
    }

    for split, tasks in made.items():
        assert {split_of(task.prompt) for task in tasks} == {split}
        assert len({task.id for task in tasks}) == 8
        assert tasks == make_tasks(family, count=8, difficulty=4, seed=2, split=split)


def test_shares_of_the_splits_are_five_two_one() -> None:
    prompts = [f"{n}>1=?" for n in range(4000)]
    counts = [sum(split_of(p) == split for p in prompts) / 500 for split in SPLITS]

    assert counts == pytest.approx([5, 2, 1], abs=0.3)


def test_more_tasks_than_exist_is_refused_with_the_number() -> None:
    with pytest.raises(InvalidSettingError, match="count = 50"):
        make_tasks("count_high", count=50, difficulty=1, seed=1, split="sft")


def test_unknown_family_is_refused_with_the_choices() -> None:
    with pytest.raises(InvalidSettingError, match="max_fold"):
        make_tasks("sum_fold", count=1, difficulty=1, seed=1, split="sft")


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param("9" * 1_000_000, id="megabyte"),
        pytest.param(" " * 1_000_000 + "4", id="padded-megabyte"),
        pytest.param("\u0664", id="arabic-digit"),
        pytest.param("\uff14", id="full-width-digit"),
        pytest.param("\u00a04", id="no-break-space"),
        pytest.param("4.0", id="float"),
        pytest.param("2+2", id="expression"),
        pytest.param("__import__('os').abort()", id="code"),
        pytest.param("4\x00", id="nul"),
        pytest.param("", id="empty"),
    ],
)
def test_hostile_answers_fail_cleanly(answer: str) -> None:
    tasks = make_tasks("max_fold", count=256, difficulty=4, seed=1, split="heldout")
    task = next(task for task in tasks if task.answer == "4")

    verdict = verify(task, _response(answer))

    assert (verdict.outcome, verdict.correctness, verdict.format) == ("fail", 0.0, 1.0)


def test_another_seed_draws_other_problems() -> None:
    for family in FAMILIES:
        drawn = [
            {t.prompt for t in make_tasks(family, count=4, difficulty=6, seed=seed, split="sft")}
            for seed in (1, 2)
        ]

        assert len(drawn[0] & drawn[1]) < 4, family


def test_a_difficulty_out_of_range_is_refused_with_the_range() -> None:
    with pytest.raises(InvalidSettingError, match="1 to 10 for sudoku"):
        make_tasks("sudoku", count=1, difficulty=11, seed=1, split="sft")


def test_right_answer_in_a_broken_format_fails() -> None:
    task = make_tasks("any_high", count=1, difficulty=4, seed=1, split="heldout")[0]

    verdict = verify(task, _response(task.answer, well_formed=False))

    assert (verdict.outcome, verdict.correctness, verdict.format) == ("fail", 0.0, 0.0)
