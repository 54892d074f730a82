"""Rewards, advantages and the curriculum, without a model."""

import random

import pytest

from m1.data_recipes.tasks.families import Verdict
from m1.stages.rl.advantage import group_advantages, judged_advantages, reward
from m1.stages.rl.curriculum import FLOOR, Curriculum
from m1.stages.settings import ReinforceSettings, TaskMix

PASS = Verdict(outcome="pass", correctness=1.0, format=1.0)
FAIL = Verdict(outcome="fail", correctness=0.0, format=1.0)


def settings(**changes: object) -> ReinforceSettings:
    base: dict[str, object] = {
        "steps": 100,
        "window_tokens": 100,
        "tasks": {"max_fold": TaskMix()},
        "later_tasks": {"any_high": TaskMix()},
        "first_phase_fraction": 0.3,
        "format_reward": 0.1,
        "overlong_penalty": 0.5,
    }
    return ReinforceSettings.model_validate(base | changes)


def test_a_right_well_formed_answer_earns_correctness_and_format() -> None:
    assert reward(PASS, length_tokens=10, was_cut=False, settings=settings()) == 1.1


def test_a_wrong_well_formed_answer_earns_its_format_only() -> None:
    assert reward(FAIL, length_tokens=10, was_cut=False, settings=settings()) == 0.1


@pytest.mark.parametrize(
    ("length", "penalty"),
    [
        pytest.param(80, 0.0, id="before-the-last-fifth"),
        pytest.param(90, 0.25, id="half-way-through-it"),
        pytest.param(100, 0.5, id="at-the-window"),
    ],
)
def test_the_overlong_penalty_grows_over_the_last_fifth(length: int, penalty: float) -> None:
    earned = reward(PASS, length_tokens=length, was_cut=False, settings=settings())

    assert earned == pytest.approx(1.1 - penalty)


def test_advantages_have_zero_mean_and_unit_deviation() -> None:
    advantages = group_advantages([1.0, 0.0, 0.0, 1.0, 1.0])

    assert advantages is not None
    assert sum(advantages) == pytest.approx(0.0, abs=1e-12)
    assert sum(a * a for a in advantages) / 5 == pytest.approx(1.0)


def test_a_group_of_equal_rewards_has_no_signal() -> None:
    assert group_advantages([0.1] * 8) is None


def test_later_tasks_wait_for_the_first_phase_to_end() -> None:
    curriculum = Curriculum(settings())

    assert curriculum.weights(0)["any_high"] == 0.0
    assert curriculum.weights(29)["any_high"] == 0.0
    assert 0.0 < curriculum.weights(40)["any_high"] < 0.5
    assert curriculum.weights(60)["any_high"] == pytest.approx(0.5)


def test_a_mastered_family_keeps_a_floor_and_yields_to_the_uncertain_one() -> None:
    curriculum = Curriculum(settings())
    for _ in range(50):
        curriculum.observe({"max_fold": [1.0] * 8, "any_high": [1.0, 0.0]})

    weights = curriculum.weights(99)

    assert weights["max_fold"] == pytest.approx(FLOOR / (FLOOR + 1.0), abs=0.01)


def test_the_curriculum_survives_a_checkpoint() -> None:
    curriculum = Curriculum(settings())
    curriculum.observe({"max_fold": [1.0, 0.0, 0.0, 0.0]})

    restored = Curriculum.from_json(settings(), curriculum.to_json())

    drawn = [c.draw(50, 16, random.Random(5)) for c in (curriculum, restored)]
    assert drawn[0] == drawn[1]


def test_a_sample_that_could_not_be_judged_moves_no_baseline_and_gets_no_advantage() -> None:
    lost = Verdict(outcome="infra_error", correctness=0.0, format=1.0)

    advantages = judged_advantages([PASS, lost, FAIL], [1.1, 0.1, 0.1])

    assert advantages == [pytest.approx(1.0), 0.0, pytest.approx(-1.0)]


def test_a_group_that_could_not_be_judged_has_no_signal() -> None:
    lost = Verdict(outcome="infra_error", correctness=0.0, format=1.0)

    assert judged_advantages([lost, lost], [0.1, 1.1]) is None
    assert judged_advantages([PASS, lost], [1.1, 0.1]) is None
