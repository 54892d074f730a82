"""The process groups of a job, from torchrun's environment to Megatron's parallel state."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import m1.model.compat  # noqa: F401  (patches megatron-core before it is imported)

# isort: split

import torch
from megatron.core import parallel_state, tensor_parallel

from m1.model.config import ParallelLayout

COLLECTIVE_TIMEOUT_SECONDS = 600  # ours: far above a toy step, far below a human's patience


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _alone_by_default() -> None:
    """Outside torchrun this process is a job of one rank."""
    os.environ.setdefault("RANK", "0")
    os.environ.setdefault("WORLD_SIZE", "1")
    os.environ.setdefault("LOCAL_RANK", "0")
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ.setdefault("MASTER_PORT", str(_free_port()))


@contextmanager
def process_groups(layout: ParallelLayout, *, seed: int) -> Iterator[None]:
    """Megatron's groups for `layout`, on nccl with a GPU and on gloo without; undone at the end.

    Raises:
        ValueError: torchrun started another number of ranks than the layout says.
    """
    _alone_by_default()
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    torch.distributed.init_process_group(
        backend, timeout=timedelta(seconds=COLLECTIVE_TIMEOUT_SECONDS)
    )
    try:
        if torch.distributed.get_world_size() != layout.world_size:
            raise ValueError(
                f"layout says {layout.world_size} ranks, "
                f"torchrun started {torch.distributed.get_world_size()}"
            )
        parallel_state.initialize_model_parallel(
            tensor_model_parallel_size=layout.tensor,
            pipeline_model_parallel_size=layout.pipeline,
            context_parallel_size=layout.context,
            expert_model_parallel_size=layout.expert,
            expert_tensor_parallel_size=1,
        )
        tensor_parallel.model_parallel_cuda_manual_seed(seed)
        yield
    finally:
        parallel_state.destroy_model_parallel()
        torch.distributed.destroy_process_group()
