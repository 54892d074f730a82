"""A run on machines that break: how long it really takes, and how often to save.

The model: failures come at random with a constant rate (exponential waiting times). One failure
stops the job; a replacement is at hand, the restart takes a fixed time and may itself be hit; work
since the last checkpoint is lost. Saving blocks training, as our training loop does.

For this model the expectation is known in closed form (Daly 2006, equation for T with failures
during restart), and a whole run can be drawn without playing it second by second: the attempts
at a segment are independent, so their number and their lengths are drawn directly. The law is
exactly that of the event-by-event game (tests compare the two).

Sources: J. W. Young, A first order approximation to the optimum checkpoint interval, 1974;
J. T. Daly, A higher order estimate of the optimum checkpoint interval for restart dumps, 2006;
failure rate: Llama 3 report, section 3.3.4: 419 unexpected interruptions in 54 days on 16,384
GPUs of 8 to a node.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

SECONDS_PER_YEAR = 365.0 * 86_400
LLAMA3_NODE_FAILURES_PER_YEAR = 419 / 54 * 365 / (16_384 / 8)  # 1.38
MAX_DRAWS = 20_000_000  # ours: more failures than this is a job that does not get anywhere
_CANDIDATES = 20_000

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Hazards:
    """What the machines of one job do to it.

    Args:
        failures_per_second: of the whole job.
        checkpoint_seconds: training stands still while it is written.
        restart_seconds: from a failure to the first new step.
    """

    failures_per_second: float
    checkpoint_seconds: float
    restart_seconds: float

    def __post_init__(self) -> None:
        for name in self.__slots__:
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise ValueError(f"{name} = {value} (accepted: >= 0)")

    @property
    def mean_seconds_between_failures(self) -> float:
        """Infinite if nothing ever fails."""
        rate = self.failures_per_second
        return 1 / rate if rate else math.inf


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """Work in equal steps, saved every so many of them and at the end."""

    steps: int
    step_seconds: float

    def __post_init__(self) -> None:
        if self.steps < 1 or not 0 < self.step_seconds < math.inf:
            raise ValueError(
                f"steps = {self.steps} (accepted: >= 1), "
                f"step_seconds = {self.step_seconds} (accepted: > 0)"
            )

    @property
    def seconds(self) -> float:
        """Without failures and checkpoints."""
        return self.steps * self.step_seconds


def young_interval_seconds(hazards: Hazards) -> float:
    """First-order optimum of the time between two checkpoints: sqrt(2 C M)."""
    return math.sqrt(2 * hazards.checkpoint_seconds * hazards.mean_seconds_between_failures)


def daly_interval_seconds(hazards: Hazards) -> float:
    """Higher-order optimum of the time between two checkpoints (Daly 2006, equation 37)."""
    cost, mean = hazards.checkpoint_seconds, hazards.mean_seconds_between_failures
    if cost >= 2 * mean:
        return mean
    small = cost / (2 * mean)
    correction = 1 + math.sqrt(small) / 3 + small / 9
    return young_interval_seconds(hazards) * correction - cost


def expected_seconds(job: Job, hazards: Hazards, every_steps: npt.ArrayLike) -> Floats:
    """Mean time to the end of the job, for each interval of an array of intervals.

    Each segment of length L (work and checkpoint) takes exp(r R) (exp(r L) - 1) / r on average
    with failure rate r and restart time R; infinite where that is beyond floating point.
    """
    every = np.atleast_1d(np.asarray(every_steps, dtype=np.int64))
    whole, rest = np.divmod(job.steps, every)
    with np.errstate(over="ignore", invalid="ignore"):
        mean = whole * _segment_seconds(every * job.step_seconds, hazards)
        last = _segment_seconds(rest * job.step_seconds, hazards)
    return np.where(whole > 0, mean, 0.0) + np.where(rest > 0, last, 0.0)


def _segment_seconds(work_seconds: npt.ArrayLike, hazards: Hazards) -> Floats:
    length = np.asarray(work_seconds, dtype=np.float64) + hazards.checkpoint_seconds
    rate = hazards.failures_per_second
    if rate == 0:
        return length
    restarts = np.exp(np.float64(rate * hazards.restart_seconds))
    return np.asarray(restarts * np.expm1(rate * length) / rate)


def best_interval_steps(job: Job, hazards: Hazards) -> int:
    """The number of steps between checkpoints with the smallest expected time.

    Looks at every number up to some thousands of steps and at a fine geometric grid above.
    """
    grid = np.geomspace(1, job.steps, _CANDIDATES).round().astype(np.int64)
    return int(_best(job, hazards, np.unique(grid)))


def _best(job: Job, hazards: Hazards, candidates: Counts) -> np.int64:
    best: np.int64 = candidates[np.argmin(expected_seconds(job, hazards, candidates))]
    return best


@dataclass(frozen=True, slots=True, kw_only=True)
class Runs:
    """Drawn runs of one job, one element per run."""

    seconds: Floats
    failures: Counts

    def __add__(self, other: "Runs") -> "Runs":
        return Runs(seconds=self.seconds + other.seconds, failures=self.failures + other.failures)


def draw_runs(
    job: Job,
    hazards: Hazards,
    *,
    every_steps: int,
    trials: int,
    generator: np.random.Generator,
) -> Runs:
    """`trials` runs of the job, saved every `every_steps` steps.

    Raises:
        ValueError: failures come so fast that the job hardly gets anywhere.
    """
    whole, rest = divmod(job.steps, every_steps)
    _check_hope(job, hazards, every_steps=every_steps, trials=trials)
    runs = Runs(seconds=np.zeros(trials), failures=np.zeros(trials, dtype=np.int64))
    for count, steps in ((whole, every_steps), (1 if rest else 0, rest)):
        length = steps * job.step_seconds + hazards.checkpoint_seconds
        runs = runs + _draw_segments(count, length, hazards, trials, generator)
    return runs


def _check_hope(job: Job, hazards: Hazards, *, every_steps: int, trials: int) -> None:
    mean = float(expected_seconds(job, hazards, every_steps)[0])
    failures = mean * hazards.failures_per_second * trials
    if failures > MAX_DRAWS:
        raise ValueError(
            f"a failure every {hazards.mean_seconds_between_failures:,.0f} s leaves "
            f"{every_steps} steps of {job.step_seconds:,.0f} s and a checkpoint of "
            f"{hazards.checkpoint_seconds:,.0f} s hardly a chance: {failures / trials:,.3g} "
            f"failures per run (accepted: {MAX_DRAWS // trials:,} or fewer)"
        )


def _draw_segments(
    count: int, length: float, hazards: Hazards, trials: int, generator: np.random.Generator
) -> Runs:
    """`count` segments in a row: failed attempts and their restarts, then success each."""
    rate = hazards.failures_per_second
    seconds = np.full(trials, float(count * length))
    if count == 0 or rate == 0:
        return Runs(seconds=seconds, failures=np.zeros(trials, dtype=np.int64))
    failures = generator.negative_binomial(count, math.exp(-rate * length), trials)
    # Whoever restarts may be hit again before the first new step.
    again = _failed_restarts(failures, hazards, generator)
    seconds += _time_lost(failures, length, rate, generator)
    seconds += failures * hazards.restart_seconds
    seconds += _time_lost(again, hazards.restart_seconds, rate, generator)
    return Runs(seconds=seconds, failures=failures + again)


def _failed_restarts(failures: Counts, hazards: Hazards, generator: np.random.Generator) -> Counts:
    survives = math.exp(-hazards.failures_per_second * hazards.restart_seconds)
    again = np.zeros_like(failures)
    hit = failures > 0
    again[hit] = generator.negative_binomial(failures[hit], survives)
    return again


def _time_lost(
    counts: Counts, length: float, rate: float, generator: np.random.Generator
) -> Floats:
    """Per run, the sum of `counts` waiting times, each known to be shorter than `length`."""
    uniform = generator.random(int(counts.sum()))
    waits = -np.log1p(uniform * math.expm1(-rate * length)) / rate
    run = np.repeat(np.arange(len(counts)), counts)
    return np.bincount(run, weights=waits, minlength=len(counts)).astype(np.float64)
