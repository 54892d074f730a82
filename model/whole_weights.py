"""The whole model on every rank, for decoding and export: weights gathered from all ranks.

Small models only: M1 itself is sampled by a server that has a layout of its own, and never stands
on one GPU.
"""

import m1.model.compat  # noqa: F401  (patches megatron-core before it is imported)

# isort: split

import torch
from megatron.core import parallel_state
from torch import Tensor
from torch.distributed import ProcessGroup

from m1.model.initialisation import global_named_parameters, split_axis
from m1.model.spec import HybridModel


@torch.no_grad()
def whole_weights(model: HybridModel) -> dict[str, Tensor]:
    """Every weight under its global name. All ranks call it, all get the same.

    Weights this rank holds whole are the model's own tensors, others are copies: they do not see
    later updates.
    """
    own = {name: _joined(parameter) for name, parameter in global_named_parameters(model)}
    group = parallel_state.get_pipeline_model_parallel_group()
    return own if group.size() == 1 else _of_all_stages(own, group)


def _joined(parameter: torch.nn.Parameter) -> Tensor:
    """One weight from the parts of tensor ranks, or of expert ranks."""
    if parameter.dim() == 3:
        return _concatenated(parameter, 0, parallel_state.get_expert_model_parallel_group())
    axis = split_axis(parameter)
    if axis is None:
        return parameter
    return _concatenated(parameter, axis, parallel_state.get_tensor_model_parallel_group())


def _concatenated(part: Tensor, axis: int, group: ProcessGroup) -> Tensor:
    if group.size() == 1:
        return part
    parts = [torch.empty_like(part) for _ in range(group.size())]
    torch.distributed.all_gather(parts, part.contiguous(), group=group)
    return torch.cat(parts, axis)


def _of_all_stages(own: dict[str, Tensor], group: ProcessGroup) -> dict[str, Tensor]:
    """The layers of every pipeline rank, each sent by the rank that holds them."""
    device = next(iter(own.values())).device
    described = {name: (tuple(x.shape), x.dtype) for name, x in own.items()}
    of_stages: list[dict[str, tuple[tuple[int, ...], torch.dtype]]] = [{}] * group.size()
    torch.distributed.all_gather_object(of_stages, described, group=group)
    whole: dict[str, Tensor] = {}
    for stage, names in enumerate(of_stages):
        for name, (shape, dtype) in names.items():
            is_own = stage == group.rank()
            held = own[name] if is_own else torch.empty(shape, dtype=dtype, device=device)
            torch.distributed.broadcast(held.detach(), group=group, group_src=stage)
            whole[name] = held
    return whole
