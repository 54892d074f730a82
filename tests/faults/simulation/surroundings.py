"""Puts a world in the place of threads, clocks, process tables and randomness of the real code."""

import secrets
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import m1.flows.stage_run
import m1.flows.status
import m1.flows.sweep
import m1.infra.lease
import m1.infra.store.s3
import m1.infra.transfer
import m1.stages.context
import m1.stages.worker
from m1.infra.lease import Holder
from tests.faults.simulation import world as simulated
from tests.faults.simulation.world import Process, World


class Surroundings:
    """What the patched names lead to: always the world that is played now."""

    def __init__(self) -> None:
        self.world: World | None = None

    def play(self, world: World) -> None:
        """From now on `world` is the one."""
        self.world = world

    @property
    def _now(self) -> World:
        assert self.world is not None
        return self.world

    @property
    def _process(self) -> Process:
        assert self._now.current is not None
        return self._now.current.process

    # threading
    def Event(self) -> simulated.Event:  # noqa: N802
        return simulated.Event(self._now)

    def Lock(self) -> simulated.Lock:  # noqa: N802
        return simulated.Lock(self._now)

    def Thread(self, *, target: Any, args: tuple[Any, ...] = (), **_: object) -> Any:  # noqa: N802
        return simulated.Thread(self._now, target, args)

    # time
    def sleep(self, seconds: float) -> None:
        self._now.sleep(seconds)

    def time(self) -> float:
        return simulated.WorldClock(self._now).wall_seconds()

    def monotonic(self) -> float:
        return self._now.now

    # secrets
    def token_hex(self, size: int) -> str:
        return f"{self._now.random.getrandbits(size * 8):0{size * 2}x}"

    # the process table
    def current_holder(self, label: str = "") -> Holder:
        process = self._process
        return Holder(
            host=process.machine.name, process_id=process.number,
            process_start=str(process.number), boot_id=process.machine.name, label=label,
        )  # fmt: skip

    def process_start(self, process_id: int) -> str | None:
        found = self._now.processes[process_id - 1]
        here = found.machine is self._process.machine
        return str(process_id) if found.alive and here else None


class SerialPool:
    """`ThreadPoolExecutor` whose work is done by whoever asks for it."""

    def __init__(self, _workers: int) -> None:
        pass

    def __enter__(self) -> "SerialPool":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def map(self, function: Any, items: Any) -> list[Any]:
        return [function(item) for item in items]


@contextmanager
def surroundings() -> Iterator[Surroundings]:
    """The real code lives in `Surroundings` while the block runs."""
    ours = Surroundings()
    replaced = [
        (m1.infra.lease, "threading", ours),
        (m1.infra.lease, "secrets", ours),
        (m1.infra.lease, "process_start", ours.process_start),
        (m1.flows.stage_run, "threading", ours),
        (m1.flows.stage_run, "current_holder", ours.current_holder),
        (m1.flows.sweep, "current_holder", ours.current_holder),
        (m1.infra.store.s3, "time", ours),
        (m1.infra.transfer, "ThreadPoolExecutor", SerialPool),
        (m1.stages.context, "time", ours),
        (m1.stages.worker, "VERSIONED", ()),
    ]
    assert m1.infra.lease.secrets is secrets
    assert m1.infra.transfer.ThreadPoolExecutor is ThreadPoolExecutor
    with ExitStack() as stack:
        for owner, name, value in replaced:
            stack.enter_context(mock.patch.object(owner, name, value))
        yield ours
