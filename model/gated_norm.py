"""The output norm of a lightning layer: RMSNorm over all heads, times sigmoid(gate).

Source: facts sheet section 1.3. CUDA tensors go to `m1.model.kernels.gated_norm`; this is its twin.
"""

import torch
from megatron.core import tensor_parallel
from torch import Tensor, distributed


def gated_norm(
    x: Tensor,
    gate: Tensor,
    weight_F: Tensor,
    *,
    epsilon: float,
    group: distributed.ProcessGroup | None = None,
) -> Tensor:
    """Norm x over its last axis, scale by weight and sigmoid(gate); [..., F] like x.

    Args:
        x: [..., F]; the mean square is taken in fp32 over the last axis of all ranks of `group`.
        gate: like x, before the sigmoid.
        weight_F: this rank's part of the weight.
        epsilon: added to the mean square.
        group: tensor-parallel ranks that share the features; None is this rank alone.
    """
    if x.is_cuda and x.numel():
        from m1.model.kernels import gated_norm as kernels

        if kernels.is_supported(x.shape[-1]):
            return kernels.gated_norm(x, gate, weight_F, epsilon=epsilon, group=group)
    x32, features = x.float(), x.shape[-1]
    squares = x32.square().sum(-1, keepdim=True)
    if group is not None:
        squares = tensor_parallel.reduce_from_tensor_model_parallel_region(squares, group=group)
        squares = tensor_parallel.copy_to_tensor_model_parallel_region(squares, group=group)
        features *= group.size()
    normed = x32 * torch.rsqrt(squares / features + epsilon)
    return torch.sigmoid(gate) * (normed.to(x.dtype) * weight_F)
