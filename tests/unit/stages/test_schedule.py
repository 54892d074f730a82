"""The learning rate is a pure function of the step."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from m1.stages.settings import TrainSettings
from m1.stages.training.schedule import learning_rate


def settings(**changes: float) -> TrainSettings:
    base = {"steps": 300, "warmup_steps": 10, "learning_rate": 8e-5, "final_learning_rate": 8e-6}
    return TrainSettings.model_validate(base | changes)


def test_warm_up_is_linear_and_ends_at_the_peak() -> None:
    rates = [learning_rate(settings(), step) for step in range(11)]

    assert rates[0] == pytest.approx(8e-6)
    assert rates[4] == pytest.approx(4e-5)
    assert rates[9] == rates[10] == 8e-5


def test_the_first_third_is_constant_as_in_the_paper() -> None:
    assert {learning_rate(settings(), step) for step in range(10, 100)} == {8e-5}
    assert learning_rate(settings(), 102) < 8e-5


@given(st.integers(min_value=0, max_value=299))
def test_the_rate_never_leaves_its_bounds_after_warm_up(step: int) -> None:
    rate = learning_rate(settings(warmup_steps=0), step)

    assert 8e-6 <= rate <= 8e-5 * (1 + 1e-12)


def test_the_end_is_the_final_rate() -> None:
    assert learning_rate(settings(), 300) == pytest.approx(8e-6)
