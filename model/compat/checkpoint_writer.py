"""Writes megatron's distributed checkpoints in this process instead of in forked ones.

megatron-core 0.16.1 starts a manager process and one writer per file for every save, also for a
synchronous one. On a CPU that is seven seconds for the first save of each job, and forking a
process that holds gloo threads is not safe. The bytes on disk are the same.
"""

import queue
from typing import Any


class _CountQueue:
    """The little of a JoinableQueue that the writer touches."""

    def get(self) -> None:
        """Nothing waits here."""

    def task_done(self) -> None:
        """Nothing waits here."""


def _write_here(
    transform_list: Any, use_msc: bool, rank: int, write_buckets: Any, results: Any
) -> None:
    """Write every bucket one after the other and report as the forked writers would."""
    from megatron.core.dist_checkpointing.strategies.filesystem_async import FileSystemWriterAsync

    written: Any = {}
    for index, bucket in enumerate(write_buckets):
        answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
        FileSystemWriterAsync.write_preloaded_data(
            transform_list,
            local_proc_idx=index,
            write_bucket=bucket,
            results_queue=answers,
            count_queue=_CountQueue(),
            use_fsync=True,
        )
        _, answer = answers.get()
        if isinstance(answer, Exception):
            written = answer
            break
        written[index] = answer
    results.put(written)


def install() -> None:
    """Replace the process-spawning writer, once."""
    from megatron.core.dist_checkpointing.strategies import filesystem_async

    filesystem_async._get_write_results_queue = lambda: queue.Queue()
    writer = filesystem_async.FileSystemWriterAsync
    writer.write_preloaded_data_multiproc = staticmethod(_write_here)
