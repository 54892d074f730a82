"""How the benchmarks measure time and memory on a GPU, and say where they ran."""

import functools
import platform
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"


def random(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Fresh normal numbers on the GPU."""
    return torch.randn(shape, device="cuda", dtype=dtype)


def milliseconds(run: Callable[[], Any], *, in_graph: bool = True) -> float:
    """Median over replays that last about a tenth of a second together."""
    run()
    torch.cuda.synchronize()
    if in_graph:
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            run()
        torch.cuda.synchronize()
        torch.cuda.empty_cache()  # the graph keeps memory of its own
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run()
        run = graph.replay
    first = _once(run)
    times = [_once(run) for _ in range(max(5, min(40, int(100 / first))))]
    return sorted(times)[len(times) // 2]


def _once(run: Callable[[], Any]) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    run()
    end.record()
    torch.cuda.synchronize()
    return float(start.elapsed_time(end))


def peak_gibibytes(run: Callable[[], Any]) -> float:
    """Memory over what is held before, at its peak."""
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    torch.cuda.synchronize()
    return float(torch.cuda.max_memory_allocated() - before) / 2**30


@functools.cache
def copy_rate() -> float:
    """Bytes a second, read and written, of a large copy on this GPU."""
    source = torch.empty(2**31, dtype=torch.int8, device="cuda")
    target = torch.empty_like(source)
    return 2**32 / milliseconds(lambda: target.copy_(source)) * 1e3


def machine(commit: str | None) -> dict[str, str]:
    """Where and with what this was measured."""
    if commit is None:
        asked = ["git", "rev-parse", "--short", "HEAD"]
        commit = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return {
        "device": torch.cuda.get_device_name(),
        "copy": f"{copy_rate() / 1e12:.2f} TB/s",
        "commit": commit.strip(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": triton.__version__,
    }
