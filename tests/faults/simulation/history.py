"""One history: what a seed decides to happen, played to its end, and how it ended."""

import logging
import shutil
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random

from m1.flows.effects import RunEffects, StopRequests
from m1.flows.identity import identity_settings, stage_identity
from m1.flows.preset import Preset, load_preset
from m1.flows.run_record import RunRecord
from m1.flows.stage_plan import plan_stage
from m1.flows.stage_run import run_stage
from m1.flows.sweep import sweep_run
from m1.infra.canonical_json import sha256_hex
from m1.infra.errors import BadInputError, LeaseHeldError, M1Error
from m1.infra.manifest import Commit, ObjectEntry, load_commit, verify_objects
from m1.infra.names import attempt_prefix
from m1.infra.store.s3 import S3Store
from tests.faults.simulation.checker import SWEEPER, Checker
from tests.faults.simulation.jobs import Mood, SimulatedLauncher, undisturbed_weights
from tests.faults.simulation.service import Client, Pages, Service, Weather
from tests.faults.simulation.surroundings import Surroundings
from tests.faults.simulation.world import (
    EndlessHistoryError,
    Event,
    Machine,
    Process,
    World,
    WorldClock,
)

RUN = "r"
STAGES = ("pretrain", "sft")
LEASE_SECONDS = 60.0
CALM_TRIES = 12
CURATE = "0001-cccccccc"
CORPUS = b"corpus"
DELICATE = (  # calls around which the protocol must hold its breath
    "put commit.json", "put lease.json", "get lease.json", "get result.json", "delete", "list",
)  # fmt: skip

logging.getLogger("m1.infra.lease").setLevel(logging.ERROR)  # its warnings are virtual, too


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How a history ended."""

    seed: int
    word: str  # recovered, or refused: <the named error>
    violations: tuple[str, ...]
    trace: str
    recovery_seconds: float  # virtual, from the last fault to the last commit
    disturbances: int
    runs: int  # flows that were started


@cache
def _preset() -> Preset:
    return load_preset("toy", ["run.order=[curate, pretrain, sft]"])


@cache
def _record() -> RunRecord:
    return RunRecord(run=RUN, preset=_preset(), created_at="2026-01-01T00:00:00+00:00", versions={})


@cache
def _corpus_commit() -> Commit:
    preset = _preset()
    return Commit(
        run=RUN, stage="curate", fingerprint=stage_identity(preset, "curate", {}).fingerprint(),
        attempt=CURATE, fence=1, parents={},
        objects=(ObjectEntry(
            key="outputs/weights.bin", size_bytes=len(CORPUS), sha256=sha256_hex(CORPUS)
        ),),
        settings=identity_settings(preset.settings["curate"]), metrics={}, versions={}, layout={},
        steps=0, tokens=0, seconds=1.0, committed_at="2026-01-01T00:00:00+00:00",
    )  # fmt: skip


def play(seed: int, surroundings: Surroundings) -> Ending:
    """Play the history of `seed`."""
    folder = Path(tempfile.mkdtemp(prefix="m1-history-", dir=_scratch()))
    try:
        return History(seed, surroundings, folder).play()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _scratch() -> str | None:
    memory = Path("/dev/shm")  # noqa: S108 - a file system in memory, where there is one
    return str(memory) if memory.is_dir() else None


class History:
    """The play of one seed."""

    def __init__(self, seed: int, surroundings: Surroundings, folder: Path) -> None:
        self.seed = seed
        self.world = World(seed)
        surroundings.play(self.world)
        random = self.random = self.world.random
        self.service = Service(self.world)
        self.weather = _weather(random)
        self.client = Client(self.world, self.service, self.weather)
        self.clock = WorldClock(self.world)
        self.mood = [_mood(random)]
        self.checker = Checker(self.world, self.service)
        self.machines = [
            Machine(name=f"m{i}", skew_seconds=_skew(random), work_root=folder / f"m{i}")
            for i in range(random.choice((1, 2, 2, 3)))
        ]
        self.launchers = [
            SimulatedLauncher(self.world, machine, self._store, self.mood)
            for machine in self.machines
        ]
        for launcher in self.launchers:
            launcher.on_watch = self.checker.on_watch
        self.horizon = random.uniform(60.0, 400.0)
        self.holds_breath = random.random() < 0.2  # flows stand still right before the commit
        self.calm = False
        self.flows: list[tuple[Process, StopRequests]] = []
        self.promised: dict[str, str] = {}  # stage -> digest that a flow was given
        self.disturbances = 0
        self.word = "nothing"
        self.recovery_seconds = 0.0

    def play(self) -> Ending:
        self._begin()
        try:
            self.world.run()
        except EndlessHistoryError as error:
            self.world.errors.append(str(error))
        self._check_end()
        return Ending(
            seed=self.seed,
            word=self.word,
            violations=tuple(self.checker.violations + self.world.errors),
            trace=self.world.trace,
            recovery_seconds=self.recovery_seconds,
            disturbances=self.disturbances,
            runs=len(self.flows),
        )

    def _store(self) -> S3Store:
        return S3Store("bucket", prefix="", client=self.client)

    # ---- the cast ------------------------------------------------------------------------------

    def _begin(self) -> None:
        commit = _corpus_commit()
        prefix = attempt_prefix(RUN, "curate", CURATE)
        self.service.put(None, f"{prefix}outputs/weights.bin", CORPUS, {})
        self.service.put(None, f"runs/{RUN}/curate/commit.json", commit.to_bytes(), {})
        random = self.random
        outside = Machine(name="outside", skew_seconds=0.0, work_root=Path("none"))
        for number in range(random.choice((1, 1, 2, 2, 3))):
            place = random.randrange(len(self.machines))
            person = self.world.process(outside, f"person {number}")
            start = random.uniform(0.0, 0.4 * self.horizon)
            self.world.spawn(person, lambda place=place, start=start: self._person(place, start))
        for _ in range(random.choice((0, 1, 1, 2))):
            process = self.world.process(random.choice(self.machines), SWEEPER)
            start = random.uniform(0.0, self.horizon)
            self._doom(process)
            self.world.spawn(process, lambda start=start: self._sweeper(start))
        chaos = self.world.process(outside, "chaos")
        self.world.spawn(chaos, self._chaos)
        end = self.world.process(outside, "end")
        self.world.spawn(end, self._end)

    def _person(self, place: int, start: float) -> None:
        """Starts the pipeline, and starts it again when it ended early."""
        self.world.sleep(start)
        while not self.calm and self._flow(place) != "done":
            self.world.sleep(self.random.uniform(5.0, 120.0))

    def _flow(self, place: int) -> str:
        """Run the stages in a process of their own; answers `done` or how it ended."""
        machine = self.machines[place]
        process = self.world.process(machine, f"flow {len(self.flows)}")
        stop = StopRequests()
        self.flows.append((process, stop))
        if not self.calm:
            self._doom(process)
        effects = RunEffects(
            store=self._store(), launcher=self.launchers[place], work_root=machine.work_root,
            clock=self.clock, stop=stop, poll_seconds=6.0, stop_grace_seconds=10.0,
            lease_term_seconds=LEASE_SECONDS,
        )  # fmt: skip
        answer = ["killed"]
        ended = self._event()
        process.on_death.append(ended.set)
        self.world.spawn(process, lambda: self._run_stages(process, effects, answer, ended))
        ended.wait()
        self.world.record("flow", answer[0])
        return answer[0]

    def _event(self) -> Event:
        return Event(self.world)

    def _run_stages(
        self, process: Process, effects: RunEffects, answer: list[str], ended: Event
    ) -> None:
        try:
            for stage in STAGES:
                commit = run_stage(effects, record=_record(), stage=stage)
                self._promise(stage, commit)
            answer[0] = "done"
        except LeaseHeldError as error:
            answer[0] = f"held {error.expires_in_seconds}"
        except M1Error as error:
            answer[0] = type(error).__name__
        except Exception as error:  # noqa: BLE001 - anything else is a violation
            answer[0] = "unnamed"
            self.checker.violations.append(f"{process.label}: {type(error).__name__}: {error}")
        self.world.kill(process)

    def _promise(self, stage: str, commit: Commit) -> None:
        if self.promised.setdefault(stage, commit.digest) != commit.digest:
            self.checker.violations.append(f"two flows were given different commits of {stage}")

    def _sweeper(self, start: float) -> None:
        self.world.sleep(start)
        everything = self.random.random() < 0.8
        try:
            sweep_run(self._store(), _record(), clock=self.clock, everything=everything)
        except M1Error as error:
            self.world.record("sweep", type(error).__name__)

    # ---- what goes wrong -----------------------------------------------------------------------

    def _doom(self, process: Process) -> None:
        """Decide now whether the process dies or stands still between two calls of the store."""
        random = self.random
        if self.holds_breath and process.label.startswith("flow"):
            process.doom["before put commit.json"] = random.uniform(1.0, 6.0) * LEASE_SECONDS
        if random.random() < 0.4:
            return
        where: object = random.randint(1, 120)
        if random.random() < 0.5:
            where = f"{random.choice(('before', 'after'))} {random.choice(DELICATE)}"
        dies = random.random() < 0.4
        process.doom[where] = 0.0 if dies else random.uniform(5.0, 4 * LEASE_SECONDS)
        self.disturbances += 1

    def _chaos(self) -> None:
        for _ in range(self.random.randint(0, 6)):
            self.world.sleep(self.random.uniform(1.0, self.horizon / 3))
            if self.calm:
                return
            self._disturb()

    def _disturb(self) -> None:
        self.disturbances += 1
        alive = [
            process
            for process in self.world.processes
            if process.alive and process.label.split()[0] in ("flow", "job", SWEEPER)
        ]
        if not alive:
            return
        victim = self.random.choice(alive)
        what = self.random.random()
        if what < 0.4:
            self.world.kill(victim)
        elif what < 0.8:
            self.world.stand_still(victim, self.random.uniform(5.0, 4 * LEASE_SECONDS))
        elif self.flows:
            self.random.choice(self.flows)[1].count += 1

    # ---- the end -------------------------------------------------------------------------------

    def _end(self) -> None:
        """Faults cease; the same command must now lead to the end."""
        self.world.sleep(self.horizon)
        self.calm = True
        self.weather.clear()
        self.mood.append(Mood(bad_input=self.mood[0].bad_input))
        started = self.world.now
        self.word = self._finish()
        self.recovery_seconds = self.world.now - started
        self.world.sleep(5 * LEASE_SECONDS)  # zombies wake
        process = self.world.process(self.machines[0], SWEEPER)
        self.world.spawn(process, lambda: self._sweeper(0.0))

    def _finish(self) -> str:
        for _ in range(CALM_TRIES):
            answer = self._flow(0)
            if answer == "done":
                return "recovered"
            if answer == BadInputError.__name__:
                return f"refused: {answer}"
            wait = float(answer.split()[1]) if answer.startswith("held") else 5.0
            self.world.sleep(min(max(wait, 1.0), 2 * LEASE_SECONDS))
        return f"never: {answer}"

    def _check_end(self) -> None:
        """With the clockwork stopped: what is committed is whole and what it should be."""
        violations = self.checker.violations
        if self.word not in ("recovered", f"refused: {BadInputError.__name__}"):
            violations.append(f"the history ended in {self.word!r}")
        store = _Still(self.service)
        weights = {"curate": CORPUS}
        for stage in STAGES:
            commit = load_commit(store, RUN, stage)
            if commit is None:
                if self.word == "recovered" or stage in self.promised:
                    violations.append(f"the commit of {stage} is gone")
                continue
            if self.promised.get(stage, commit.digest) != commit.digest:
                violations.append(f"the commit of {stage} is not the one that was promised")
            violations += [f"{stage}: {text}" for text in verify_objects(store, commit, full=True)]
            plan = plan_stage(store, _record(), stage)
            weights[stage] = undisturbed_weights(stage, {n: weights[n] for n in plan.parents})
            key = attempt_prefix(RUN, stage, commit.attempt) + "outputs/weights.bin"
            if key in self.service.objects and store.get(key).body != weights[stage]:
                violations.append(f"the weights of {stage} are not those of an undisturbed run")


def _weather(random: Random) -> Weather:
    rates = [random.choice((0.0, 0.0, 0.01, 0.05)) for _ in range(4)]
    outages = []
    for _ in range(random.choice((0, 0, 0, 1, 2))):
        start = random.uniform(0.0, 300.0)
        outages.append((start, start + random.uniform(2.0, 120.0)))
    return Weather(
        refused=rates[0], lost=rates[1], late=rates[2] / 2, conflict=rates[3], outages=outages,
        slow=random.choice((0.0, 0.05, 0.2)),
    )  # fmt: skip


def _mood(random: Random) -> Mood:
    if random.random() < 0.03:
        return Mood(bad_input=True)
    return Mood(
        crash=random.choice((0.0, 0.1, 0.3)), preempted=random.choice((0.0, 0.1)),
        empty_handed=random.choice((0.0, 0.05)), liar=random.choice((0.0, 0.05)),
    )  # fmt: skip


def _skew(random: Random) -> float:
    return random.choice((0.0, 0.0, 0.0, random.uniform(-7200.0, 7200.0)))


class _Still(S3Store):
    """The objects as they are, read without any time passing."""

    def __init__(self, service: Service) -> None:
        super().__init__("bucket", prefix="", client=_StillClient(service))


class _StillClient:
    def __init__(self, service: Service) -> None:
        self._service = service

    def get_object(
        self, *, Bucket: str, Key: str, IfMatch: str | None = None, Range: str | None = None
    ) -> object:
        return self._service.get(Key, IfMatch, Range)

    def get_paginator(self, _name: str) -> object:
        return Pages(self._service.list)
