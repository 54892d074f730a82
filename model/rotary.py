"""Changing the rotary base of a built model, as each step of context extension does."""

import torch

from m1.model.spec import HybridModel


def set_rotary_base(model: HybridModel, rotary_base: float) -> None:
    """Rotate the softmax layers by the frequencies of `rotary_base` from now on.

    The base is not a weight: it lives in Megatron's rotary module and its cache.
    """
    rotary = model.rotary_pos_emb
    width = 2 * rotary.inv_freq.numel()
    steps = torch.arange(0, width, 2, dtype=torch.float32, device=rotary.inv_freq.device)
    rotary.inv_freq = 1.0 / (rotary_base ** (steps / width))
    type(rotary).forward.cache_clear()
    model.rotary_base = rotary_base
