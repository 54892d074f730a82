"""Lets megatron-core 0.16.1 run on a machine without CUDA.

Covered: the names megatron-core touches in `torch.cuda` while it builds, trains and saves the
hybrid model on gloo. Not covered: CUDA graphs, TransformerEngine, its own inference engines.
Each patch below stands for one place in megatron-core that assumes a CUDA device.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch

CPU = torch.device("cpu")


class NullStream:
    """Stands for a CUDA stream: on a CPU everything is already in order."""

    def __init__(self, *_: object, **__: object) -> None:
        self.device = CPU

    def __enter__(self) -> "NullStream":
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def wait_stream(self, _: object) -> None:
        """Nothing to wait for."""

    def wait_event(self, _: object) -> None:
        """Nothing to wait for."""

    def record_event(self, event: Any = None) -> Any:
        """An event that has already happened."""
        return event or NullEvent()

    def synchronize(self) -> None:
        """Nothing to wait for."""


class NullEvent:
    """Stands for a CUDA event that has already happened."""

    def __init__(self, *_: object, **__: object) -> None:
        return None

    def record(self, *_: object) -> None:
        """Nothing to record."""

    def wait(self, *_: object) -> None:
        """Nothing to wait for."""

    def query(self) -> bool:
        """It has happened."""
        return True

    def synchronize(self) -> None:
        """Nothing to wait for."""

    def elapsed_time(self, _: object) -> float:
        """Milliseconds; there is no device clock."""
        return 0.0


class _OneGenerator:
    """Every device index leads to the CPU's generator."""

    def __getitem__(self, _: object) -> torch.Generator:
        return torch.default_generator


def _is_cuda(device: object) -> bool:
    if isinstance(device, torch.device):
        return device.type == "cuda"
    return isinstance(device, int) or (isinstance(device, str) and device.startswith("cuda"))


def _on_cpu(factory: Callable[..., Any]) -> Callable[..., Any]:
    """The same tensor factory, with CUDA devices and pinned memory turned into plain CPU."""

    @functools.wraps(factory)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if _is_cuda(kwargs.get("device")):
            kwargs["device"] = CPU
        if kwargs.get("pin_memory"):
            kwargs["pin_memory"] = False
        return factory(*args, **kwargs)

    return wrapped


def _patch_streams() -> None:
    null = NullStream()
    torch.cuda.Stream = NullStream  # type: ignore[misc, assignment]
    torch.cuda.Event = NullEvent  # type: ignore[misc, assignment]
    torch.cuda.current_stream = lambda *_: null  # type: ignore[assignment, return-value]
    torch.cuda.default_stream = lambda *_: null  # type: ignore[assignment, return-value]
    torch.cuda.stream = lambda *_: null  # type: ignore[assignment, return-value]


def _patch_device() -> None:
    torch.cuda.current_device = lambda: CPU  # type: ignore[assignment, return-value]
    torch.cuda.device_count = lambda: 1  # the checkpoint writer takes rank % device_count()
    for name in (
        "synchronize",
        "set_device",
        "empty_cache",
        "ipc_collect",
        "reset_peak_memory_stats",
    ):
        setattr(torch.cuda, name, lambda *_, **__: None)
    for name in (
        "memory_allocated",
        "max_memory_allocated",
        "memory_reserved",
        "max_memory_reserved",
    ):
        setattr(torch.cuda, name, lambda *_, **__: 0)


def _patch_random_state() -> None:
    """Route the 'CUDA' generator that megatron's tracker forks to the CPU's generator.

    Without it `tracker.fork()` would queue its work for a CUDA start that never comes.
    """
    torch.cuda.get_rng_state = lambda *_: torch.get_rng_state()
    torch.cuda.random.get_rng_state = lambda *_, **__: torch.get_rng_state()  # recomputation asks
    torch.cuda.set_rng_state = lambda state, *_: torch.set_rng_state(state)
    torch.cuda.manual_seed = lambda seed: torch.manual_seed(seed)  # type: ignore[assignment]
    torch.cuda.default_generators = _OneGenerator()  # type: ignore[assignment]
    torch.cuda._lazy_call = lambda call, **_: call()  # type: ignore[assignment]
    torch.cuda._lazy_init = lambda: None


def _patch_tensors() -> None:
    for name in (
        "empty",
        "zeros",
        "ones",
        "full",
        "tensor",
        "arange",
        "rand",
        "randn",
        "empty_like",
    ):
        setattr(torch, name, _on_cpu(getattr(torch, name)))
    torch.Tensor.cuda = lambda self, *_, **__: self  # type: ignore[method-assign]
    torch.nn.Module.cuda = lambda self, *_: self  # type: ignore[method-assign, return-value]
    torch.Tensor.record_stream = lambda self, _: None  # type: ignore[method-assign, assignment]
    torch.cuda.nvtx.range_push = lambda *_: 0
    torch.cuda.nvtx.range_pop = lambda: 0


def _patch_type_names() -> None:
    """Report CPU tensors under the CUDA type names that megatron's optimizer compares with."""
    original = torch.Tensor.type

    def type_name(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        answer = original(self, *args, **kwargs)
        if not args and not kwargs and isinstance(answer, str):
            return answer.replace("torch.", "torch.cuda.", 1)
        return answer

    torch.Tensor.type = type_name  # type: ignore[method-assign, assignment]


def _patch_dispatcher() -> None:
    """C10d wants split sizes as lists; megatron converts them only when they sit on a GPU."""
    from megatron.core.transformer.moe import token_dispatcher

    def to_numpy_or_same(tensor: Any, *_: object, as_numpy: bool = False, **__: object) -> Any:
        if as_numpy and isinstance(tensor, torch.Tensor):
            return tensor.numpy()
        return tensor

    token_dispatcher.maybe_move_tensor_to_cpu = to_numpy_or_same


def _patch_compile() -> None:
    """`torch.compile` gives the function back: compiling took 12.5 s at the first step.

    It also keeps `torch._dynamo` from being imported, a quarter of megatron-core's import time.
    """

    def compile_nothing(function: Any = None, **_: Any) -> Any:
        return function if function is not None else compile_nothing

    torch.compile = compile_nothing  # type: ignore[assignment]


def install() -> None:
    """Apply all patches of this module."""
    _patch_compile()
    _patch_streams()
    _patch_device()
    _patch_random_state()
    _patch_tensors()
    _patch_type_names()
    _patch_dispatcher()
