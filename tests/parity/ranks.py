"""Runs functions on several gloo ranks of this machine. Imports of torch are paid once.

A fork server that has imported the model forks every rank, so ranks start at once and carry no
thread of the test process.
"""

import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable, Sequence
from queue import Empty
from typing import Any

START = multiprocessing.get_context("forkserver")
START.set_forkserver_preload(["m1.stages.training.checkpoint_format"])
PATIENCE_SECONDS = 240

Job = Callable[..., Any]  # runs inside a rank; importable by name


def on_ranks(world: int, job: Job, *arguments: Any, groups: int) -> list[Any]:
    """What `job(*arguments)` returns on each of `world` ranks.

    Args:
        world: number of ranks.
        job: a function of a module, called on every rank.
        arguments: the same for all ranks.
        groups: how often `job` opens process groups; each time gets a port of its own through
            `next_port`.
    """
    answers = START.Queue()
    ports = _free_ports(groups)
    ranks = [
        START.Process(target=_rank, args=(rank, world, ports, job, arguments, answers), daemon=True)
        for rank in range(world)
    ]
    for process in ranks:
        process.start()
    try:
        found = dict(_collect(answers, world))
    finally:
        for process in ranks:
            process.join(timeout=5)
            process.kill()
    return [found[rank] for rank in range(world)]


def _collect(answers: Any, world: int) -> list[tuple[int, Any]]:
    found = []
    for _ in range(world):
        try:
            rank, answer, error = answers.get(timeout=PATIENCE_SECONDS)
        except Empty:
            raise AssertionError(f"no answer within {PATIENCE_SECONDS} s") from None
        if error:
            raise AssertionError(f"rank {rank} failed:\n{error}")
        found.append((rank, answer))
    return found


def _free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def next_port() -> None:
    """Meet on a fresh port: the last one may still be held by a slower rank."""
    ports = os.environ["M1_TEST_PORTS"].split(",")
    os.environ["MASTER_PORT"] = ports[0]
    os.environ["M1_TEST_PORTS"] = ",".join(ports[1:])


def _rank(
    rank: int, world: int, ports: Sequence[int], job: Job, arguments: tuple[Any, ...], answers: Any
) -> None:
    import torch

    torch.set_num_threads(1)
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(world),
        MASTER_ADDR="127.0.0.1",
        M1_TEST_PORTS=",".join(map(str, ports)),
    )
    try:
        answers.put((rank, job(*arguments), ""))
    except BaseException:  # noqa: BLE001  (the test process raises it)
        answers.put((rank, None, traceback.format_exc()))
