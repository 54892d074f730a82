"""What is worth watching besides the loss: gradients by layer, expert load, speed, memory.

M1 saw its gradients explode at longer windows because early, fast-decaying layers lagged behind
(section 2.1); the norms by layer show that, and the load shows a router that collapses.

Shape letters: L layers, E experts, K rows of a table (L layers, then embedding and head).
"""

import resource
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import m1.model.compat  # noqa: F401  (patches megatron-core before it is imported)

# isort: split

import torch
from megatron.core.tensor_parallel import param_is_not_tensor_parallel_duplicate
from torch import Tensor

from m1.model.config import ModelConfig
from m1.model.cost.flops import training_flops_per_token
from m1.model.spec import HybridModel

#: Dense bf16 peak by name of the device, in FLOP/s (NVIDIA's data sheets, without sparsity).
PEAK_FLOPS = {"H100": 989e12, "H200": 989e12, "H800": 989e12, "A100": 312e12, "A800": 312e12}


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerNorms:
    """Gradient norms of the global layers, of the embedding and of the head with the last norm."""

    layers: tuple[float, ...]
    embedding: float
    head: float


def gradient_norms(model: HybridModel, optimizers: Sequence[Any]) -> LayerNorms:
    """Norms of the gradients that the optimizers hold, agreed by all ranks, before clipping.

    Args:
        model: of this rank.
        optimizers: Megatron's distributed optimizers over it, gradients ready.
    """
    count = model.config.num_layers
    rows = _rows(model, count)
    device = next(model.parameters()).device
    total_K = torch.zeros(count + 2, dtype=torch.float64, device=device)
    for optimizer in optimizers:
        squares_K = torch.zeros_like(total_K)
        for parameter, (group, order) in optimizer.model_param_group_index_map.items():
            shard = optimizer.optimizer.param_groups[group]["params"][order]
            if shard.grad is not None and param_is_not_tensor_parallel_duplicate(parameter):
                squares_K[rows[parameter]] += shard.grad.double().square().sum()
        torch.distributed.all_reduce(squares_K, group=optimizer.get_grad_stats_parallel_group())
        total_K += squares_K
    norms = total_K.sqrt().tolist()
    return LayerNorms(layers=tuple(norms[:count]), embedding=norms[count], head=norms[count + 1])


def _rows(model: HybridModel, count: int) -> dict[Any, int]:
    """The row of every parameter; layers by their global number."""
    rows = {}
    for name, parameter in model.named_parameters():
        rows[parameter] = count if name.startswith("embedding.") else count + 1
    for layer in model.decoder.layers:
        rows |= dict.fromkeys(layer.parameters(), layer.layer_number - 1)
    return rows


class ExpertLoad:
    """Counts, from now on, how many tokens each layer's router sends to each expert."""

    def __init__(self, model: HybridModel) -> None:
        shape = (model.config.num_layers, model.config.num_moe_experts)
        self._device = next(model.parameters()).device
        self._counts_LE = torch.zeros(shape, dtype=torch.int64, device=self._device)
        for layer in model.decoder.layers:
            layer.mlp.router.register_forward_hook(self._counting(layer.layer_number - 1))

    def _counting(self, layer: int) -> Callable[[Any, Any, tuple[Tensor, Tensor]], None]:
        def count(router: Any, _inputs: Any, outputs: tuple[Tensor, Tensor]) -> None:
            if router.training:
                self._counts_LE[layer] += outputs[1].detach().sum(0)

        return count

    def take(self) -> list[float]:
        """Busiest expert over the mean, per global layer, since the last call; 1 is even."""
        counts_LE = self._counts_LE.double()
        torch.distributed.all_reduce(counts_LE)  # ranks that saw the same tokens change no ratio
        self._counts_LE.zero_()
        means_L = counts_LE.mean(1).clamp(min=1.0)
        ratios: list[float] = (counts_LE.amax(1) / means_L).tolist()
        return ratios


def flops_used(config: ModelConfig, *, window_tokens: int, tokens_per_second: float) -> float:
    """Model FLOP/s of all ranks together; recomputation is not counted."""
    return tokens_per_second * training_flops_per_token(config, window_tokens=window_tokens)


def utilisation(flops_per_second: float) -> float | None:
    """Share of the devices' bf16 peak (MFU); None where the peak is unknown, as on a CPU."""
    if not torch.cuda.is_available():
        return None
    name = torch.cuda.get_device_name()
    peak = next((value for key, value in PEAK_FLOPS.items() if key in name), None)
    return None if peak is None else flops_per_second / (torch.distributed.get_world_size() * peak)


def peak_memory_bytes() -> int:
    """Most memory this rank has held: of the device, or resident on a CPU."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
