"""Starting weights: the same numbers for every parallel layout.

Each parameter is drawn whole from a generator seeded by (seed, global name), then this rank's
part is kept. `deepnorm`: Xavier with DeepNorm's gain on values, outputs and experts (01 report,
section 4.2); `normal`: one standard deviation for all (what the small presets are tuned with).
"""

import hashlib
import re
from collections.abc import Iterator
from typing import Any

import torch
from megatron.core.models.gpt import GPTModel
from megatron.core.tensor_parallel import (
    ColumnParallelLinear,
    RowParallelLinear,
    VocabParallelEmbedding,
    set_tensor_model_parallel_attributes,
)
from torch import Tensor, nn

from m1.model.config import ModelConfig

GAINED = ("linear_proj", "out_projection", "gate_up_weight", "down_weight")


def initialise(model: GPTModel, config: ModelConfig, *, seed: int) -> None:
    """Overwrite every weight matrix; norm weights stay at one."""
    _mark_split_weights(model)
    with torch.no_grad():
        for name, parameter in global_named_parameters(model):
            if parameter.dim() > 1:
                parameter.copy_(
                    _own_part(model, parameter, _draw(name, model, parameter, config, seed))
                )


def _mark_split_weights(model: GPTModel) -> None:
    """Say along which axis tensor-parallel ranks split a weight.

    Megatron does so only where it also draws the values; without the mark the gradient norm
    counts one rank's part, and the same numbers would be drawn for every part.
    """
    for module in model.modules():
        if isinstance(module, (ColumnParallelLinear, VocabParallelEmbedding)):
            set_tensor_model_parallel_attributes(module.weight, True, 0, 1)
        elif isinstance(module, RowParallelLinear):
            set_tensor_model_parallel_attributes(module.weight, True, 1, 1)


def global_named_parameters(model: GPTModel) -> Iterator[tuple[str, nn.Parameter]]:
    """Parameters under their global names: layer numbers counted over all pipeline ranks."""
    numbers = [layer.layer_number - 1 for layer in model.decoder.layers]

    def renumber(match: re.Match[str]) -> str:
        return f"decoder.layers.{numbers[int(match.group(1))]}."

    for name, parameter in model.named_parameters():
        yield re.sub(r"^decoder\.layers\.(\d+)\.", renumber, name), parameter


def split_axis(parameter: Any) -> int | None:
    """The axis along which tensor-parallel ranks split a parameter; None where each holds all."""
    return getattr(parameter, "partition_dim", None)


def _full_shape(model: GPTModel, parameter: nn.Parameter) -> list[int]:
    shape = list(parameter.shape)
    axis = split_axis(parameter)
    if axis is not None:
        shape[axis] *= model.config.tensor_model_parallel_size
    if parameter.dim() == 3:
        shape[0] *= model.config.expert_model_parallel_size
    return shape


def _draw(
    name: str, model: GPTModel, parameter: nn.Parameter, config: ModelConfig, seed: int
) -> Tensor:
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
    shape = _full_shape(model, parameter)
    values = torch.empty(shape, dtype=torch.float32).normal_(generator=generator)
    return values.mul_(_standard_deviation(name, shape, config))


def _standard_deviation(name: str, shape: list[int], config: ModelConfig) -> float:
    if config.initialisation == "normal" or "embedding" in name:
        return config.initial_std
    fan_out, fan_in = shape[-2], shape[-1]
    gain = config.deepnorm_gain if any(part in name for part in GAINED) else 1.0
    return float(gain * (2.0 / (fan_in + fan_out)) ** 0.5)


def _own_part(model: GPTModel, parameter: nn.Parameter, full: Tensor) -> Tensor:
    """This rank's slice of a parameter that was drawn whole."""
    from megatron.core import parallel_state

    part = full
    axis = split_axis(parameter)
    if axis is not None:
        rank = parallel_state.get_tensor_model_parallel_rank()
        size = parameter.shape[axis]
        part = part.narrow(axis, rank * size, size)
    if parameter.dim() == 3:
        rank = parallel_state.get_expert_model_parallel_rank()
        part = part.narrow(0, rank * parameter.shape[0], parameter.shape[0])
    return part.to(parameter)
