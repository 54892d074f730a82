"""The guard: bad batches are passed over, worse ones undone, and nothing bad is ever committed."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from m1.infra.errors import StageFailedError
from m1.stages.settings import TrainSettings
from m1.stages.training.guard import FEWEST_LOSSES, Guard, Verdict


def guard(**changes: float) -> Guard:
    return Guard.of(TrainSettings.model_validate({"spike_nats": 1.0, **changes}))


def usual(chosen: Guard) -> None:
    for _ in range(FEWEST_LOSSES):
        assert chosen.judge(loss=2.0, gradient_norm=1.0) is Verdict.APPLY


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_passed_over_from_the_first_step_on(bad: float) -> None:
    assert guard().judge(loss=bad, gradient_norm=1.0) is Verdict.SKIP
    assert guard().judge(loss=1.0, gradient_norm=bad) is Verdict.SKIP


def test_a_spike_is_passed_over_once_it_is_known_what_is_usual() -> None:
    early, late = guard(), guard()
    assert early.judge(loss=50.0, gradient_norm=1.0) is Verdict.APPLY
    usual(late)
    assert late.judge(loss=2.9, gradient_norm=1.0) is Verdict.APPLY
    assert late.judge(loss=3.1, gradient_norm=1.0) is Verdict.SKIP


def test_bad_batches_in_a_row_mean_going_back_and_a_good_one_between_them_does_not() -> None:
    chosen = guard(skips_in_a_row=2)
    usual(chosen)
    verdicts = [chosen.judge(loss=loss, gradient_norm=1.0) for loss in (9.0, 2.0, 9.0, math.nan)]
    assert verdicts == [Verdict.SKIP, Verdict.APPLY, Verdict.SKIP, Verdict.ROLL_BACK]


def test_too_many_returns_end_the_stage_with_advice() -> None:
    chosen = guard(rollbacks_allowed=1)
    chosen.rolled_back(step=7, back_to=5)
    with pytest.raises(StageFailedError, match="step 8 again after 1 returns"):
        chosen.rolled_back(step=8, back_to=5)


@given(st.lists(st.sampled_from([2.0, 9.0, math.nan]), max_size=60))
def test_batches_are_taken_in_order_and_none_twice_before_the_plan_ends(losses) -> None:
    """Whatever happens, the next batch is the one after the last that was looked at."""
    chosen, step, seen = guard(skips_in_a_row=2, rollbacks_allowed=1000), 0, []
    for loss in losses:
        seen.append(chosen.batch_number(step, steps=1000))
        verdict = chosen.judge(loss=loss, gradient_norm=1.0)
        if verdict is Verdict.APPLY:
            step += 1
        if verdict is Verdict.ROLL_BACK:
            back_to = step - step % 4
            chosen.rolled_back(step=step, back_to=back_to)
            step = back_to
    assert seen == list(range(len(losses)))


@given(st.lists(st.sampled_from([2.0, 9.0, math.nan]), max_size=40))
def test_a_guard_that_went_through_a_checkpoint_judges_the_same(losses) -> None:
    one, other = guard(), guard()
    for loss in losses:
        assert one.judge(loss=loss, gradient_norm=1.0) is other.judge(loss=loss, gradient_norm=1.0)
        copy = guard()
        copy.restore(other.to_json())
        other = copy
