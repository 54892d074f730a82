"""Machines, processes and time. Processes are greenlets: one runs at a time, and the seed decides.

A process gives way only where it waits (a sleep, an answer of the store), so everything between
two waits is one step, and a history is a sequence of such steps.
"""

import hashlib
import heapq
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from greenlet import GreenletExit, getcurrent, greenlet

EPOCH_SECONDS = 1_700_000_000.0
MOST_STEPS = 200_000  # a history that takes more never ends


class Killed(GreenletExit):
    """The process of this greenlet is dead: it unwinds, and nothing it tries has an effect."""


class EndlessHistoryError(Exception):
    """The world did not come to rest."""


@dataclass(eq=False, kw_only=True)
class Machine:
    """A host with a clock of its own."""

    name: str
    skew_seconds: float
    work_root: Path


@dataclass(eq=False, kw_only=True)
class Process:
    """Everything that dies, stands still and is fenced off together."""

    number: int
    machine: Machine
    label: str
    alive: bool = True
    still_until: float = 0.0
    calls: int = 0
    doom: dict[object, float] = field(default_factory=dict)  # see World.call_point
    tasks: list["Task"] = field(default_factory=list)
    on_death: list[Callable[[], None]] = field(default_factory=list)


class Task:
    """One thread of a process."""

    def __init__(self, process: Process, body: greenlet) -> None:
        self.process = process
        self.body = body
        self.ticket = 0


class World:
    """The order of everything; `trace` is a digest of it."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.now = 0.0
        self.current: Task | None = None
        self.processes: list[Process] = []
        self.errors: list[str] = []
        self._hub = getcurrent()
        self._queue: list[tuple[float, int, Task, int]] = []
        self._order = itertools.count()
        self._trace = hashlib.sha256()

    @property
    def trace(self) -> str:
        """Digest of everything that was recorded, in order."""
        return self._trace.hexdigest()

    def record(self, *words: object) -> None:
        """Add one event to the trace."""
        number = self.current.process.number if self.current else -1
        self._trace.update(repr((round(self.now, 6), number, *words)).encode())

    # ---- processes and their threads -----------------------------------------------------------

    def process(self, machine: Machine, label: str) -> Process:
        """A new process without threads."""
        process = Process(number=len(self.processes) + 1, machine=machine, label=label)
        self.processes.append(process)
        return process

    def spawn(self, process: Process, function: Callable[[], None]) -> Task:
        """A new thread of `process`; it starts at the current time."""

        def body() -> None:
            try:
                function()
            except Killed:
                return
            except Exception as error:  # noqa: BLE001 - reported as a violation
                self.errors.append(f"{process.label}: {type(error).__name__}: {error}")

        task = Task(process, greenlet(body, parent=self._hub))
        process.tasks.append(task)
        self._schedule(task, self.now)
        return task

    def kill(self, process: Process) -> None:
        """SIGKILL."""
        if not process.alive:
            return
        process.alive = False
        self.record("kill", process.number)
        for task in process.tasks:
            if task is not self.current:
                self._schedule(task, self.now)
        for callback in process.on_death:
            callback()

    def run(self) -> None:
        """Until nothing is left to happen."""
        for _ in range(MOST_STEPS):
            if not self._queue:
                return
            when, _, task, ticket = heapq.heappop(self._queue)
            if ticket != task.ticket or task.body.dead:
                continue
            if task.process.alive and task.process.still_until > when:
                self._push(task, task.process.still_until)
                continue
            self.now = max(self.now, when)
            self.current = task
            task.ticket += 1
            task.body.switch()
            self.current = None
        raise EndlessHistoryError(f"more than {MOST_STEPS} steps")

    # ---- called from inside a thread -----------------------------------------------------------

    def sleep(self, seconds: float) -> None:
        """Let others run for `seconds`."""
        task = self._running()
        self._schedule(task, self.now + max(seconds, 0.0))
        self._hub.switch()
        self._running()

    def wait(self, event: "Event", timeout: float | None) -> None:
        """Until the event is set or the time is up."""
        task = self._running()
        event.waiters.append((task, task.ticket))
        if timeout is not None:
            self._push(task, self.now + max(timeout, 0.0))
        self._hub.switch()
        self._running()

    def wake(self, task: Task, ticket: int) -> None:
        """End a wait that was entered with `ticket`."""
        if task.ticket == ticket:
            self._push(task, self.now)

    def call_point(self, name: str) -> None:
        """A place where a process may have been told to die or to stand still.

        `Process.doom` says where, by the count of such places or by the name of one, and what:
        0 is death, another number how long it stands still.
        """
        process = self._running().process
        process.calls += 1
        fate = process.doom.pop(process.calls, process.doom.pop(name, None))
        if fate == 0.0:
            self.kill(process)
            raise Killed
        if fate is not None:
            self.stand_still(process, fate)
            self.sleep(0.0)

    def stand_still(self, process: Process, seconds: float) -> None:
        """SIGSTOP, and SIGCONT after `seconds`."""
        process.still_until = max(process.still_until, self.now + seconds)
        self.record("stop", process.number, round(seconds, 6))

    def _running(self) -> Task:
        task = self.current
        assert task is not None, "called from outside a thread of the world"
        if not task.process.alive:
            raise Killed
        return task

    def _schedule(self, task: Task, when: float) -> None:
        task.ticket += 1  # whatever it waited for before no longer counts
        self._push(task, when)

    def _push(self, task: Task, when: float) -> None:
        heapq.heappush(self._queue, (when, next(self._order), task, task.ticket))


# ---- what code finds in the place of `threading` and `time` ------------------------------------


class Event:
    """`threading.Event` of a world."""

    def __init__(self, world: World) -> None:
        self.waiters: list[tuple[Task, int]] = []
        self._world = world
        self._is_set = False

    def is_set(self) -> bool:
        """Whether it happened."""
        return self._is_set

    def set(self) -> None:
        """It happened."""
        self._is_set = True
        waiters, self.waiters = self.waiters, []
        for task, ticket in waiters:
            self._world.wake(task, ticket)

    def wait(self, timeout: float | None = None) -> bool:
        """Until it happens."""
        if not self._is_set:
            self._world.wait(self, timeout)
        return self._is_set


class Lock:
    """`threading.Lock` of a world."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._free: Event | None = None

    def __enter__(self) -> None:
        while self._free is not None:
            self._free.wait()
        self._free = Event(self._world)

    def __exit__(self, *_: object) -> None:
        free, self._free = self._free, None
        if free is not None:
            free.set()


class Thread:
    """`threading.Thread` of a world: it belongs to the process that starts it."""

    def __init__(
        self, world: World, target: Callable[..., None], args: tuple[Any, ...] = ()
    ) -> None:
        self._world = world
        self._target = target
        self._args = args
        self._ended = Event(world)

    def start(self) -> None:
        """Begin."""
        task = self._world.current
        assert task is not None
        self._world.spawn(task.process, self._body)

    def join(self, timeout: float | None = None) -> None:
        """Wait for its end."""
        self._ended.wait(timeout)

    def _body(self) -> None:
        try:
            self._target(*self._args)
        finally:
            self._ended.set()


class WorldClock:
    """The clock of whichever machine asks."""

    def __init__(self, world: World) -> None:
        self._world = world

    def wall_seconds(self) -> float:
        """Unix time of this machine, right or wrong."""
        task = self._world.current
        skew_seconds = task.process.machine.skew_seconds if task else 0.0
        return EPOCH_SECONDS + self._world.now + skew_seconds

    def monotonic_seconds(self) -> float:
        """Seconds since the world began."""
        return self._world.now

    def sleep(self, seconds: float) -> None:
        """Wait."""
        self._world.sleep(seconds)
