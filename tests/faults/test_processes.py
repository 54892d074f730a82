"""Real processes are killed, stopped and lie; the run ends with the bits of an undisturbed one."""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import psutil
import pytest

from m1.infra.manifest import load_commit
from m1.infra.names import attempt_prefix, attempts_prefix
from m1.infra.store.local import LocalStore
from m1.stages.checkpoints import RECORD_NAME
from tests.faults.processes import pipeline
from tests.faults.rows import SCALE, count

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900 * max(1.0, SCALE))]

KILLS = count(100)
KILLS_PER_RUN = 5
SEED = 1
PATIENCE_SECONDS = 120


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A folder whose processes are gone afterwards."""
    yield tmp_path
    for process in psutil.process_iter(["cmdline"]):
        if str(tmp_path) in " ".join(process.info["cmdline"] or ()):
            process.kill()


def start(place: Path, behaviour: str = "good") -> subprocess.Popen[bytes]:
    return pipeline.start(place / "store", place / "work", behaviour)


def finish(place: Path) -> float:
    """Start the same command until it ends well; answers the seconds it took."""
    began = time.monotonic()
    deadline = began + PATIENCE_SECONDS
    while True:
        flow = start(place)
        _, said = flow.communicate(timeout=PATIENCE_SECONDS)
        if flow.returncode == 0:
            return time.monotonic() - began
        assert b"Error: " in said, said.decode()
        assert time.monotonic() < deadline, said.decode()
        time.sleep(0.2)


def kill_at(random: Random, flow: subprocess.Popen[bytes]) -> None:
    """Job, flow or both, at a random moment from the start of a job on."""
    victim = random.choice(("job", "flow", "both"))
    wait_for(lambda: pipeline.jobs_of(flow.pid) or flow.poll() is not None)
    time.sleep(random.uniform(0.0, 1.5))
    if victim != "flow":
        for job in pipeline.jobs_of(flow.pid):
            job.kill()
    if victim != "job":
        flow.kill()


@pytest.mark.fault(1, 3, 29, ending="recovered")
def test_kills_at_random_moments_change_nothing(place: Path, record_property: Any) -> None:
    random, kills, violations, recoveries = Random(SEED), 0, list[str](), list[float]()
    while kills < KILLS:
        here = place / f"run-{kills}"
        here.mkdir()
        for _ in range(KILLS_PER_RUN):
            flow = start(here)
            kill_at(random, flow)
            kills += 1
            if flow.returncode is None and random.random() < 0.5:
                flow.kill()
            flow.communicate()
        recoveries.append(finish(here))
        violations += pipeline.problems(here / "store")

    record_property("seed", SEED)
    record_property("tries", kills)
    record_property("violations", len(violations))
    record_property("recovery_seconds", recoveries)
    assert violations == []


@pytest.mark.fault(4, 17, ending="recovered")
def test_a_flow_that_stood_still_past_its_lease_wins_nothing(
    place: Path, record_property: Any
) -> None:
    zombie = start(place)
    wait_for(lambda: pipeline.jobs_of(zombie.pid))
    stopped = [psutil.Process(zombie.pid), *pipeline.jobs_of(zombie.pid)]
    for process in stopped:
        process.suspend()
    time.sleep(pipeline.LEASE_SECONDS)

    seconds = finish(place)
    for process in stopped:
        process.resume()
    zombie.communicate(timeout=PATIENCE_SECONDS)

    record_property("recovery_seconds", [seconds])
    assert pipeline.problems(place / "store") == []
    winner = load_commit(LocalStore(place / "store"), pipeline.RUN, "curate")
    assert winner is not None
    assert winner.fence > 1


@pytest.mark.fault(2, 35, ending="recovered")
def test_sigterm_saves_and_the_same_command_goes_on(place: Path, record_property: Any) -> None:
    flow = start(place)
    wait_for(lambda: pipeline.jobs_of(flow.pid))
    time.sleep(0.3)

    flow.send_signal(signal.SIGTERM)
    began = time.monotonic()
    _, said = flow.communicate(timeout=PATIENCE_SECONDS)

    record_property("recovery_seconds", [time.monotonic() - began])
    assert flow.returncode in (0, 130), said.decode()
    finish(place)
    assert pipeline.problems(place / "store") == []


@pytest.mark.fault(7, ending="refused")
@pytest.mark.parametrize("lie", ["empty_handed", "liar"])
def test_a_job_that_ends_with_0_without_its_work_is_refused(place: Path, lie: str) -> None:
    flow = start(place, behaviour=lie)
    _, said = flow.communicate(timeout=PATIENCE_SECONDS)

    assert flow.returncode == 3
    assert b"StageFailedError" in said
    assert b"ended with 0 but" in said
    assert load_commit(LocalStore(place / "store"), pipeline.RUN, "pretrain") is None
    finish(place)
    assert pipeline.problems(place / "store") == []


def _flip(path: Path) -> None:
    body = bytearray(path.read_bytes())
    body[len(body) // 2] ^= 1
    path.write_bytes(bytes(body))


def _checkpoint_files(store: Path) -> list[Path]:
    folder = store / attempts_prefix(pipeline.RUN, "pretrain")
    return sorted(path for path in folder.rglob("checkpoints/*/*") if path.is_file())


@pytest.mark.fault(14, 20, ending="recovered")
@pytest.mark.parametrize("damage", [_flip, os.unlink], ids=["flipped", "deleted"])
def test_a_checkpoint_with_any_damaged_object_is_passed_over(
    place: Path, damage: Callable[[Path], None], record_property: Any
) -> None:
    flow = start(place, behaviour="crash")
    wait_for(lambda: any(p.name == RECORD_NAME for p in _checkpoint_files(place / "store")))
    flow.kill()
    flow.communicate()
    wait_for(lambda: not _workers(place))
    names = {path.name for path in _checkpoint_files(place / "store")}
    assert {RECORD_NAME, "state.bin"} <= names

    for name in sorted(names):
        shutil.copytree(place / "store", place / name / "store")
        for path in _checkpoint_files(place / name / "store"):
            if path.name == name:
                damage(path)
        finish(place / name)
        assert pipeline.problems(place / name / "store") == []
    record_property("tries", len(names))


@pytest.mark.fault(14, 20, ending="refused")
@pytest.mark.parametrize("damage", [_flip, os.unlink], ids=["flipped", "deleted"])
def test_a_committed_object_that_is_damaged_is_named_and_never_used(
    place: Path, damage: Callable[[Path], None], record_property: Any
) -> None:
    finish(place)
    store = LocalStore(place / "store")
    commit = load_commit(store, pipeline.RUN, "pretrain")
    assert commit is not None
    prefix = attempt_prefix(pipeline.RUN, "pretrain", commit.attempt)
    shutil.rmtree(place / "store" / "runs" / pipeline.RUN / "sft")

    for entry in commit.objects:
        path = place / "store" / f"{prefix}{entry.key}"
        body = path.read_bytes()
        damage(path)
        flow = start(place)
        _, said = flow.communicate(timeout=PATIENCE_SECONDS)
        assert flow.returncode == 3, said.decode()
        assert entry.key in said.decode()
        assert load_commit(store, pipeline.RUN, "sft") is None
        path.write_bytes(body)

    finish(place)
    record_property("tries", len(commit.objects))
    assert pipeline.problems(place / "store") == []


def _workers(place: Path) -> list[psutil.Process]:
    return [
        process
        for process in psutil.process_iter(["cmdline"])
        if str(place) in " ".join(process.info["cmdline"] or ())
    ]


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
