"""Runs on failing machines: closed forms, published optima, and the game played event by event."""

import math
import random
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m1.model.config import ModelConfig, ParallelLayout
from m1.model.cost.failures import (
    LLAMA3_NODE_FAILURES_PER_YEAR,
    SECONDS_PER_YEAR,
    Hazards,
    Job,
    best_interval_steps,
    daly_interval_seconds,
    draw_runs,
    expected_seconds,
    young_interval_seconds,
)
from m1.model.cost.plan import StageWork
from m1.model.cost.simulate import Circumstances, hazards_of, simulate
from m1.model.cost.step import StepShape

MINUTE = 60.0


def hazards(minutes_between: float, *, checkpoint: float = 5, restart: float = 10) -> Hazards:
    """All in minutes."""
    return Hazards(
        failures_per_second=1 / (minutes_between * MINUTE),
        checkpoint_seconds=checkpoint * MINUTE,
        restart_seconds=restart * MINUTE,
    )


def test_without_failures_a_job_takes_its_work_and_its_checkpoints() -> None:
    calm = Hazards(failures_per_second=0, checkpoint_seconds=3, restart_seconds=100)
    job = Job(steps=10, step_seconds=2)

    assert expected_seconds(job, calm, [1, 4, 10]).tolist() == [20 + 30, 20 + 9, 20 + 3]
    drawn = draw_runs(job, calm, every_steps=4, trials=5, generator=np.random.default_rng(0))
    assert drawn.seconds.tolist() == [29] * 5
    assert best_interval_steps(job, calm) == 10


@pytest.mark.parametrize(
    ("hours_between", "minutes"), [(24, 117), (6, 57), (0.25, 9.1)], ids=["24h", "6h", "15min"]
)
def test_the_best_interval_is_dalys_published_one(hours_between: float, minutes: float) -> None:
    # Daly 2006, figures 3 to 5: 500 hours of work, restart 10 min, checkpoint 5 min
    job = Job(steps=500 * 360, step_seconds=10)
    machine = hazards(hours_between * 60)

    assert daly_interval_seconds(machine) / MINUTE == pytest.approx(minutes, rel=0.01)
    assert best_interval_steps(job, machine) * 10 / MINUTE == pytest.approx(minutes, rel=0.02)


def test_young_is_right_where_checkpoints_are_cheap_and_too_long_where_they_are_not() -> None:
    cheap, dear = hazards(1440, checkpoint=0.01), hazards(15)

    assert young_interval_seconds(cheap) == pytest.approx(daly_interval_seconds(cheap), rel=0.01)
    assert young_interval_seconds(dear) > 1.2 * daly_interval_seconds(dear)


def test_a_single_segment_is_the_textbook_formula() -> None:
    machine = Hazards(failures_per_second=0.01, checkpoint_seconds=20, restart_seconds=7)

    mean = expected_seconds(Job(steps=1, step_seconds=60), machine, 1)[0]

    assert mean == pytest.approx(100 * math.exp(0.07) * (math.exp(0.8) - 1))


def test_hopeless_intervals_are_infinite_not_an_error() -> None:
    machine = hazards(1 / 60)

    assert expected_seconds(Job(steps=2, step_seconds=1e6), machine, 1)[0] == math.inf


def played(job: Job, machine: Hazards, every: int, dice: random.Random) -> float:
    """One run, event by event: the slow obvious game that `draw_runs` has the law of."""
    clock, done, next_failure = 0.0, 0, dice.expovariate(machine.failures_per_second)
    while done < job.steps:
        steps = min(every, job.steps - done)
        end = clock + steps * job.step_seconds + machine.checkpoint_seconds
        if end <= next_failure:
            clock, done = end, done + steps
            continue
        clock = next_failure
        next_failure = clock + dice.expovariate(machine.failures_per_second)
        while next_failure < clock + machine.restart_seconds:
            clock = next_failure
            next_failure = clock + dice.expovariate(machine.failures_per_second)
        clock += machine.restart_seconds
    return clock


@pytest.mark.parametrize("every", [3, 10, 64])
def test_drawn_runs_have_the_law_of_the_game_played_event_by_event(every: int) -> None:
    job, machine = Job(steps=64, step_seconds=20), hazards(12, checkpoint=0.5, restart=3)
    dice = random.Random(1)

    slow = np.array([played(job, machine, every, dice) for _ in range(4000)])
    generator = np.random.default_rng(1)
    drawn = draw_runs(job, machine, every_steps=every, trials=40_000, generator=generator).seconds

    error = slow.std() / math.sqrt(len(slow))
    assert drawn.mean() == pytest.approx(slow.mean(), abs=4 * error)
    assert drawn.mean() == pytest.approx(expected_seconds(job, machine, every)[0], rel=0.02)
    for percent in (10, 50, 90):
        assert np.percentile(drawn, percent) == pytest.approx(
            np.percentile(slow, percent), rel=0.06
        )


JOBS = st.builds(Job, steps=st.integers(1, 3000), step_seconds=st.floats(0.1, 500, allow_nan=False))
MACHINES = st.builds(
    Hazards,
    failures_per_second=st.floats(1e-7, 1e-3),
    checkpoint_seconds=st.floats(0.0, 900),
    restart_seconds=st.floats(0.0, 3600),
)


@settings(deadline=None)
@given(job=JOBS, machine=MACHINES)
def test_no_interval_beats_the_best_one(job: Job, machine: Hazards) -> None:
    best = best_interval_steps(job, machine)

    every = expected_seconds(job, machine, np.arange(1, job.steps + 1))
    assert expected_seconds(job, machine, best)[0] <= every.min() * (1 + 1e-4)


@settings(deadline=None)
@given(job=JOBS, machine=MACHINES, share=st.floats(0.001, 1))
def test_a_run_never_beats_its_own_work_and_checkpoints(
    job: Job, machine: Hazards, share: float
) -> None:
    every = max(1, min(round(share * job.steps), math.ceil(1800 / job.step_seconds)))
    every = min(every, job.steps)
    saves = math.ceil(job.steps / every)
    floor = job.seconds + saves * machine.checkpoint_seconds
    if expected_seconds(job, machine, every)[0] * machine.failures_per_second > 1e5:
        return

    runs = draw_runs(job, machine, every_steps=every, trials=8, generator=np.random.default_rng(0))

    assert (runs.seconds >= floor * (1 - 1e-12)).all()
    unharmed = runs.seconds[runs.failures == 0]
    np.testing.assert_allclose(unharmed, floor)
    assert (runs.failures[runs.seconds > floor * (1 + 1e-9)] > 0).all()


def test_a_job_that_gets_nowhere_is_refused_with_numbers() -> None:
    with pytest.raises(ValueError, match=r"a failure every 60 s .* hardly a chance"):
        draw_runs(
            Job(steps=1000, step_seconds=600),
            hazards(1),
            every_steps=10,
            trials=10,
            generator=np.random.default_rng(0),
        )


# ---- a whole run -------------------------------------------------------------------------------

M1 = ModelConfig()


def stage(name: str, *, nodes: int, tokens: int, steps: int) -> StageWork:
    return StageWork(
        name=name,
        steps=steps,
        tokens=tokens,
        step=StepShape(window_tokens=8192, windows_per_step=1024),
        layout=ParallelLayout(nodes=nodes, processes_per_node=8),
        checkpoint_every_steps=100,
    )


def test_the_default_failure_rate_is_llama_3s() -> None:
    sixteen_thousand = stage("s", nodes=2048, tokens=1, steps=1)

    machine = hazards_of(M1, sixteen_thousand, Circumstances())

    assert machine.failures_per_second * 54 * 86_400 == pytest.approx(419)
    assert pytest.approx(1.383, abs=1e-3) == LLAMA3_NODE_FAILURES_PER_YEAR
    assert machine.mean_seconds_between_failures / 3600 == pytest.approx(3.1, abs=0.02)


def test_a_checkpoint_takes_its_bytes_over_the_stores_bandwidth() -> None:
    circumstances = Circumstances(store_bytes_per_second=1e11, restart_seconds=600)

    machine = hazards_of(M1, stage("s", nodes=64, tokens=1, steps=1), circumstances)

    assert machine.checkpoint_seconds == pytest.approx(14 * 456_089_655_296 / 1e11)
    assert machine.restart_seconds == pytest.approx(600 + machine.checkpoint_seconds)
    assert machine.failures_per_second == pytest.approx(64 * 1.3831 / SECONDS_PER_YEAR, rel=1e-3)


def test_sixteen_thousand_gpus_for_months_are_simulated_in_seconds_and_train_over_nine_tenths() -> (
    None
):
    stages = [stage("pretrain", nodes=2048, tokens=15_000_000_000_000, steps=1_000_000)]
    started = time.monotonic()

    answer = simulate(M1, stages, circumstances=Circumstances(trials=2000))

    assert time.monotonic() - started < 20
    # Llama 3 report, section 3.3.4: more than 90 % effective training time
    assert 0.9 < answer["total"]["effective_share"]["mean"] < 1
    hours = answer["total"]["hours"]
    assert hours["p5"] < hours["p50"] < hours["p95"]
    expected = answer["stages"]["pretrain"]["checkpoint"]["expected_hours"]
    assert hours["mean"] == pytest.approx(expected["best"], rel=5e-3)
    assert expected["best"] <= min(expected.values()) * (1 + 1e-6)
    assert answer["total"]["cost"]["mean"] == pytest.approx(hours["mean"] * 16_384 * 2.07)


def test_the_same_seed_draws_the_same_runs() -> None:
    stages = [stage("a", nodes=512, tokens=10**12, steps=1000)]

    first, again, other = (
        simulate(M1, stages, circumstances=Circumstances(trials=50, seed=seed))["total"]
        for seed in (1, 1, 2)
    )

    assert first == again
    assert first != other


def test_the_whole_run_is_its_stages_one_after_the_other() -> None:
    stages = [stage(name, nodes=64, tokens=10**12, steps=500) for name in ("a", "b")]

    answer = simulate(M1, stages, circumstances=Circumstances(trials=20))

    parts = [answer["stages"][name]["hours"]["mean"] for name in ("a", "b")]
    assert answer["total"]["hours"]["mean"] == pytest.approx(sum(parts))


@pytest.mark.parametrize(
    "changed",
    [
        {"node_failures_per_year": 0},
        {"restart_seconds": -1},
        {"store_bytes_per_second": 0},
        {"trials": 0},
        {"seed": -1},
    ],
    ids=str,
)
def test_impossible_circumstances_are_refused(changed: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(changed))} = "):
        Circumstances(**changed)
