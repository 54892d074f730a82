"""A pipeline of three stages whose flow and jobs are real processes.

`python -m tests.faults.processes.pipeline STORE WORK` runs it; the functions below start it, look
at it and say what it must end with.
"""

import os
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import psutil

from m1.flows.effects import RunEffects, StopRequests
from m1.flows.preset import load_preset
from m1.flows.run_record import RunRecord
from m1.flows.stage_run import run_stage
from m1.infra.errors import M1Error
from m1.infra.manifest import load_commit, verify_objects
from m1.infra.names import attempt_prefix
from m1.infra.store.local import LocalStore
from m1.stages.registry import parents_of
from tests.fakes.direct_launcher import DirectLauncher
from tests.faults.simulation.jobs import undisturbed_weights

REPOSITORY = Path(__file__).parents[3]
MODULE = "tests.faults.processes.pipeline"
RUN = "chain"
STAGES = ("curate", "pretrain", "sft")
WORKER = "tests.faults.processes.chain_worker"
LEASE_SECONDS = 3.0


@cache
def record() -> RunRecord:
    """What the run is started with."""
    preset = load_preset("toy", [f"run.order=[{', '.join(STAGES)}]"])
    return RunRecord(run=RUN, preset=preset, created_at="2026-01-01T00:00:00+00:00", versions={})


def run(store: Path, work: Path, environment: Mapping[str, str]) -> None:
    """All stages, in this process."""
    stop = StopRequests()
    effects = RunEffects(
        store=LocalStore(store), launcher=DirectLauncher(), work_root=work, stop=stop,
        environment=environment, module=WORKER, poll_seconds=0.02, stop_grace_seconds=5.0,
        lease_term_seconds=LEASE_SECONDS,
    )  # fmt: skip
    with stop.installed():
        for stage in STAGES:
            run_stage(effects, record=record(), stage=stage)


def job_environment(behaviour: str = "good") -> dict[str, str]:
    """What a job needs, and nothing more."""
    path = os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")]).strip(os.pathsep)
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    return {**kept, "PYTHONPATH": path, "M1_CHAIN": behaviour}


def start(store: Path, work: Path, behaviour: str = "good") -> subprocess.Popen[bytes]:
    """The flow in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", MODULE, str(store), str(work)],
        env=job_environment(behaviour), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        start_new_session=True,
    )  # fmt: skip


def jobs_of(flow: int) -> list[psutil.Process]:
    """The live jobs that a flow started."""
    try:
        return psutil.Process(flow).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def problems(store_root: Path) -> list[str]:
    """What is wrong with a finished run, in words; empty means: as an undisturbed one."""
    store, weights, found = LocalStore(store_root), dict[str, bytes](), list[str]()
    for stage in STAGES:
        parents = {name: weights[name] for name in parents_of(stage, STAGES)}
        weights[stage] = undisturbed_weights(stage, parents)
        commit = load_commit(store, RUN, stage)
        if commit is None:
            found.append(f"{stage} is not committed")
            continue
        found += [f"{stage}: {text}" for text in verify_objects(store, commit, full=True)]
        key = attempt_prefix(RUN, stage, commit.attempt) + "outputs/weights.bin"
        if store.get(key).body != weights[stage]:
            found.append(f"{stage}: other weights than an undisturbed run")
    return found


def main() -> int:
    """The flow."""
    store, work = Path(sys.argv[1]), Path(sys.argv[2])
    try:
        run(store, work, job_environment(os.environ.get("M1_CHAIN", "good")))
    except M1Error as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
