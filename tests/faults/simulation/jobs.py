"""The launcher of a world and what its jobs do: a chain of digests in the place of training.

A job reads its spec, resumes, checkpoints, hands over and leaves its result through the real
`StageContext`. Its weights are a digest over all its steps and its parents' weights, so a run that
lost or repeated a step ends with other weights.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from m1.infra.errors import M1Error
from m1.infra.launch.protocol import JobHandle, JobRequest, JobState, JobStatus
from m1.infra.store.protocol import Store
from m1.stages import worker
from m1.stages.context import StageContext
from m1.stages.contract import RESULT_NAME, StageResult, StageSpec
from tests.faults.simulation.world import Event, Machine, Process, World

STEPS = 4
CHECKPOINT_EVERY_STEPS = 2
STEP_SECONDS = 5.0
KILLED = 137


def undisturbed_weights(stage: str, parents: dict[str, bytes]) -> bytes:
    """What `stage` must hand over, computed without any of the machinery."""
    state = _start(stage, parents)
    for step in range(1, STEPS + 1):
        state = _trained(state, step)
    return state


def _start(stage: str, parents: dict[str, bytes]) -> bytes:
    named = b"".join(name.encode() + weights for name, weights in sorted(parents.items()))
    return hashlib.sha256(stage.encode() + named).digest()


def _trained(state: bytes, step: int) -> bytes:
    return hashlib.sha256(state + step.to_bytes(4, "big")).digest()


@dataclass(frozen=True, kw_only=True)
class Mood:
    """How a job misbehaves: how likely an attempt crashes, lies, or finds its input unusable."""

    crash: float = 0.0
    preempted: float = 0.0
    empty_handed: float = 0.0  # exits 0 without a result
    liar: float = 0.0  # its result names an object that is not there
    bad_input: bool = False

    def draw(self, random: Random) -> str:
        """What one attempt will do."""
        if self.bad_input:
            return "bad input"
        draw = random.random()
        for name in ("crash", "preempted", "empty_handed", "liar"):
            draw -= getattr(self, name)
            if draw < 0:
                return name
        return "good"


@dataclass(eq=False, kw_only=True)
class Job:
    """One running job."""

    spec: StageSpec
    process: Process
    ended: Event
    context: StageContext | None = None
    exit_code: int | None = None
    watchers: set[int] = field(default_factory=set)  # numbers of the flows that watch it


class SimulatedLauncher:
    """Jobs of one machine. They outlive the flow that started them, as on a cluster."""

    def __init__(
        self, world: World, machine: Machine, open_store: Callable[[], Store], mood: list[Mood]
    ) -> None:
        self.jobs: dict[str, Job] = {}
        self.on_watch: Callable[[Process, Job], None] = lambda _flow, _job: None
        self._world = world
        self._machine = machine
        self._open_store = open_store
        self._mood = mood

    def submit(self, request: JobRequest) -> JobHandle:
        """Start a job; most are told to stop when their flow dies."""
        spec = StageSpec.from_bytes(Path(request.arguments[0]).read_bytes())
        process = self._world.process(self._machine, f"job {request.name}")
        job = Job(spec=spec, process=process, ended=Event(self._world))
        process.on_death.append(job.ended.set)
        self.jobs[request.name] = job
        behaviour = self._mood[-1].draw(self._world.random)
        self._world.spawn(process, lambda: self._work(job, request.work_dir, behaviour))
        flow = self._flow()
        if self._world.random.random() < 0.7:
            flow.on_death.append(lambda: _stop(job))
        return self._watched(job, request.name)

    def poll(self, handle: JobHandle) -> JobStatus:
        """Look at a job; now and then nobody knows."""
        job = self.jobs[handle.name]
        if self._world.random.random() < 0.05:
            return JobStatus(state=JobState.UNKNOWN)
        if not job.ended.is_set():
            return JobStatus(state=JobState.RUNNING)
        return JobStatus(
            state=JobState.ENDED, exit_code=KILLED if job.exit_code is None else job.exit_code
        )

    def logs(self, handle: JobHandle, *, offset_bytes: int = 0) -> bytes:
        """These jobs say nothing."""
        return b""

    def cancel(self, handle: JobHandle, *, grace_seconds: float = 20.0) -> None:
        """Ask, wait, kill."""
        job = self.jobs[handle.name]
        _stop(job)
        job.ended.wait(grace_seconds)
        self._world.kill(job.process)

    def adopt(self, request: JobRequest) -> JobHandle | None:
        """A live job of this name."""
        job = self.jobs.get(request.name)
        if job is None or job.ended.is_set():
            return None
        return self._watched(job, request.name)

    def _watched(self, job: Job, name: str) -> JobHandle:
        flow = self._flow()
        job.watchers.add(flow.number)
        self.on_watch(flow, job)
        return JobHandle(launcher="simulated", name=name, details={})

    def _flow(self) -> Process:
        assert self._world.current is not None
        return self._world.current.process

    def _work(self, job: Job, work_dir: Path, behaviour: str) -> None:
        try:
            job.exit_code = self._run(job, work_dir, behaviour)
        except M1Error as error:
            job.exit_code = worker._exit_code(error)
        except OSError:  # its folder was taken from under it, as a real job may find
            job.exit_code = worker.EXIT_UNEXPECTED
        finally:
            job.ended.set()

    def _run(self, job: Job, work_dir: Path, behaviour: str) -> int:
        context = StageContext(job.spec, self._open_store(), scratch=work_dir / "scratch", rank=0)
        context.barrier = lambda: None
        job.context = context
        return work(
            context, behaviour=behaviour, random=self._world.random, sleep=self._world.sleep
        )


def work(
    context: StageContext,
    *,
    behaviour: str,
    random: Random,
    sleep: Callable[[float], None],
    step_seconds: float = STEP_SECONDS,
) -> int:
    """Do the stage of `context`; answers the exit code. Real processes do this, too."""
    sleep(step_seconds * random.uniform(0.1, 1.0))
    if behaviour == "bad input":
        return 65
    step, state = _resumed(context)
    last = random.randint(step + 1, STEPS) if step < STEPS else STEPS
    while step < STEPS:
        sleep(step_seconds * random.uniform(0.8, 1.2))
        step, state = step + 1, _trained(state, step + 1)
        context.report(step=step, steps=STEPS, phase="training")
        stopping = context.stop.is_set or (behaviour == "preempted" and step == last)
        if step % CHECKPOINT_EVERY_STEPS == 0 or stopping:
            _save(context, step, state)
        if stopping:
            return 75
        if behaviour == "crash" and step == last:
            return 9
    return _hand_over(context, state, behaviour)


def _stop(job: Job) -> None:
    if job.context is not None:
        job.context.stop.is_set = True


def _resumed(context: StageContext) -> tuple[int, bytes]:
    parents = {
        name: (context.fetch(name, "") / "weights.bin").read_bytes()
        for name in context.spec.parents
    }
    found = context.resume()
    if found is None:
        return 0, _start(context.spec.stage, parents)
    record, directory = found
    return record.step, (directory / "state.bin").read_bytes()


def _save(context: StageContext, step: int, state: bytes) -> None:
    directory = context.checkpoint_directory(step)
    directory.mkdir(parents=True)
    (directory / "state.bin").write_bytes(state)
    context.commit_checkpoint(step, tokens=step)


def _hand_over(context: StageContext, state: bytes, behaviour: str) -> int:
    (context.outputs / "weights.bin").write_bytes(state)
    (context.outputs / "report.json").write_bytes(b"{}")
    if behaviour == "empty_handed":
        return 0
    outcome = worker.StageOutcome(metrics={}, steps=STEPS, tokens=STEPS)
    if behaviour == "liar":
        _lie(context)
    else:
        worker._leave_result(context, outcome)
    return 0


def _lie(context: StageContext) -> None:
    """A result like any other, but for an object that is gone."""
    entries = context.upload_outputs()
    context.store.delete(context.prefix + entries[0].key)
    spec = context.spec
    result = StageResult(
        fingerprint=spec.fingerprint, attempt=spec.attempt, fence=spec.fence, objects=entries,
        metrics={}, versions={}, steps=STEPS, tokens=STEPS, seconds=1.0,
    )  # fmt: skip
    context.store.put_if_absent(context.prefix + RESULT_NAME, result.to_bytes())
