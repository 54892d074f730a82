"""Runs functions on several gloo ranks of this machine. Imports of torch are paid once.

A fork server that has imported the model forks every rank, so ranks start at once and carry no
thread of the test process.
"""

import multiprocessing
import os
import traceback
from collections.abc import Callable
from queue import Empty
from typing import Any

import torch
from torch.distributed import TCPStore

START = multiprocessing.get_context("forkserver")
START.set_forkserver_preload(["m1.stages.training.checkpoint_format"])
PATIENCE_SECONDS = 500

Job = Callable[..., Any]  # runs inside a rank; importable by name


def on_ranks(world: int, job: Job, *arguments: Any, meetings: int = 1) -> list[Any]:
    """What `job(*arguments)` returns on each of `world` ranks.

    Args:
        world: number of ranks.
        job: a function of a module, called on every rank.
        arguments: the same for all ranks.
        meetings: how often `job` opens process groups, each time after `meet_anew`.
    """
    answers = START.Queue()
    stores = [TCPStore("127.0.0.1", 0, None, True, wait_for_workers=False) for _ in range(meetings)]
    ports = [store.port for store in stores]
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


def meet_anew() -> None:
    """The next process groups find one another in a store of their own.

    The test process holds the stores, so no port is free for anyone else to take in between.
    """
    port, *later = os.environ["M1_TEST_PORTS"].split(",")
    os.environ.update(MASTER_PORT=port, M1_TEST_PORTS=",".join(later))


def _rank(
    rank: int, world: int, ports: list[int], job: Job, arguments: tuple[Any, ...], answers: Any
) -> None:
    torch.set_num_threads(1)
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(world),
        MASTER_ADDR="127.0.0.1",
        M1_TEST_PORTS=",".join(map(str, ports)),
        TORCHELASTIC_USE_AGENT_STORE="True",
    )
    try:
        answers.put((rank, job(*arguments), ""))
    except BaseException:  # noqa: BLE001  (the test process raises it)
        answers.put((rank, None, traceback.format_exc()))
