"""Decay rates of the lightning layers: one fp32 number per head, fixed by head and layer.

Source: released modelling code of M1; facts sheet section 1.3.
"""

import math

import torch
from torch import Tensor

from m1.model.config import ModelConfig


def _head_slopes(num_heads: int) -> list[float]:
    """2^(-8 (h + 1) / H) for a power of two; the ALiBi interleave for other head counts."""
    if math.log2(num_heads).is_integer():
        return [2.0 ** (-8.0 * (head + 1) / num_heads) for head in range(num_heads)]
    below = 2 ** math.floor(math.log2(num_heads))
    extra = _head_slopes(2 * below)[0::2][: num_heads - below]
    return _head_slopes(below) + extra


def slopes(config: ModelConfig, layer: int) -> Tensor:
    """Positive decay rates [H] of the 0-based global layer, in fp32 on the CPU."""
    span = max(config.num_layers - 1, 1)
    factor = 1.0 - layer / span + 1e-5
    return torch.tensor(_head_slopes(config.num_heads), dtype=torch.float32) * factor
