"""Thousands of histories of the real protocol in a simulated world, none of which breaks a promise.

A failing seed replays: `play(seed, ...)` in a debugger is the same history, step by step.
"""

import multiprocessing
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from tests.faults.rows import SCALE, count
from tests.faults.simulation.history import Ending, play
from tests.faults.simulation.mutations import MUTATIONS
from tests.faults.simulation.surroundings import Surroundings, surroundings

FIRST_SEED = 0
HISTORIES = count(10_000)
CHUNK = 250
MOST_SEEDS_FOR_A_MUTATION = 2_500
REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def world() -> Iterator[Surroundings]:
    with surroundings() as ours:
        yield ours


def play_chunk(first: int, last: int) -> list[Ending]:
    """Histories of a range of seeds, in a process of its own."""
    with surroundings() as ours:
        return [play(seed, ours) for seed in range(first, last)]


def play_all() -> list[Ending]:
    starts = range(FIRST_SEED, FIRST_SEED + HISTORIES, CHUNK)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(os.cpu_count(), mp_context=context) as pool:
        futures = [
            pool.submit(play_chunk, first, min(first + CHUNK, FIRST_SEED + HISTORIES))
            for first in starts
        ]
        return [ending for future in futures for ending in future.result()]


@pytest.mark.slow
@pytest.mark.timeout(900 * max(1.0, SCALE))
@pytest.mark.fault(1, 3, 7, 9, 15, 16, 17, 19, 33, ending="recovered")
def test_no_history_breaks_a_promise(record_property: Any) -> None:
    endings = play_all()
    broken = {ending.seed: ending.violations for ending in endings if ending.violations}
    record_property("seed", f"{FIRST_SEED} to {FIRST_SEED + HISTORIES - 1}")
    record_property("tries", len(endings))
    record_property("violations", len(broken))
    record_property(
        "recovery_virtual_seconds",
        [ending.recovery_seconds for ending in endings if ending.word == "recovered"],
    )

    assert not dict(list(broken.items())[:10])
    assert len(endings) == HISTORIES
    words = {ending.word for ending in endings}
    assert words == {"recovered", "refused: BadInputError"}
    assert sum(ending.disturbances > 0 for ending in endings) > HISTORIES / 2


def test_the_same_seed_is_the_same_history(world: Surroundings) -> None:
    seeds = range(20)

    first, second = ([play(seed, world).trace for seed in seeds] for _ in range(2))

    assert first == second
    assert len(set(first)) == len(seeds)
    assert _traces_in_another_process(seeds) == first


def _traces_in_another_process(seeds: range) -> list[str]:
    """With other hash seeds and other folders."""
    script = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from tests.faults.test_simulation import play_chunk\n"
        f"for ending in play_chunk({seeds.start}, {seeds.stop}): print(ending.trace)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(REPOSITORY)],
        env={**os.environ, "PYTHONHASHSEED": "12345"}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout.split()


@pytest.mark.slow
@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.__name__)
def test_the_checker_notices_a_promise_taken_away(
    mutation: type[AbstractContextManager[object]], world: Surroundings
) -> None:
    with mutation():
        caught = next(
            (
                ending
                for ending in (play(seed, world) for seed in range(MOST_SEEDS_FOR_A_MUTATION))
                if ending.violations
            ),
            None,
        )

    assert caught is not None
    assert play(caught.seed, world).violations == ()  # the seed is innocent, the mutation is not
