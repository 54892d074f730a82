"""The residual stream of M1: DeepNorm post-norm, written rotated.

    x = input_norm(h);  h = alpha x + attention(x)
    x = post_norm(h);   h = alpha x + experts(x)

The branch that is carried on is the *normalised* tensor. Megatron's own layer carries the raw
one, hence this subclass. Source: facts sheet section 1.5; 01 report section 4.2.
"""

from typing import Any

import torch
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_layer import TransformerLayer
from torch import Tensor

from m1.model.experts import mix_experts


class _NormFunction(torch.autograd.Function):
    """y = w x / rms(x), with its gradient written out (no faster on a CPU, see the lab log)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:  # type: ignore[override]
        x32 = x.float()
        inverse = torch.rsqrt(x32.square().mean(-1, keepdim=True) + epsilon)
        ctx.save_for_backward(x, weight, inverse)
        return (x32 * inverse).to(x.dtype) * weight

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:  # type: ignore[override]
        x, weight, inverse = ctx.saved_tensors
        normed = x.float() * inverse
        grad32 = grad.float()
        grad_normed = grad32 * weight
        mean = (grad_normed * normed).mean(-1, keepdim=True)
        grad_x = (grad_normed - normed * mean) * inverse
        grad_weight = (grad32 * normed).flatten(0, -2).sum(0)
        return grad_x.to(x.dtype), grad_weight.to(weight.dtype), None


class RootMeanSquareNorm(MegatronModule):
    """RMSNorm in fp32 that may sit inside a sequence-parallel region."""

    def __init__(self, config: Any, hidden_size: int, eps: float = 1e-5, **_: Any) -> None:
        super().__init__(config=config)
        self.epsilon = eps
        self.weight = torch.nn.Parameter(torch.ones(hidden_size, dtype=config.params_dtype))
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]

    def forward(self, x: Tensor) -> Tensor:
        """Scale the last axis to unit root mean square, then by the weight."""
        if x.is_cuda and x.numel():
            from m1.model.kernels import gated_norm as kernels

            if kernels.is_supported(x.shape[-1]):
                return kernels.norm(x, self.weight, epsilon=self.epsilon)
        normed: Tensor = _NormFunction.apply(x, self.weight, self.epsilon)
        return normed


class HybridLayer(TransformerLayer):
    """One layer of either kind: attention by spec, experts, and the rotated residual."""

    def _forward_attention(  # type: ignore[override]
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        rotary_pos_emb: Tensor | None = None,
        **_: Any,
    ) -> tuple[Tensor, None]:
        normed = self.input_layernorm(hidden_states)
        attended, _bias = self.self_attention(
            normed, attention_mask=attention_mask, rotary_pos_emb=rotary_pos_emb
        )
        return self.config.hybrid.alpha * normed + attended, None

    def _forward_mlp(  # type: ignore[override]
        self, hidden_states: Tensor, inference_context: Any = None, padding_mask: Any = None
    ) -> Tensor:
        normed = self.pre_mlp_layernorm(hidden_states)
        return self.config.hybrid.alpha * normed + mix_experts(self.mlp, normed, padding_mask)
