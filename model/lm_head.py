"""The LM head in fp32, and the log-probabilities of targets.

MiniMax found the training/sampling mismatch at the head and keeps it in fp32, forward and
backward (M1 section 3.2). Trainer and sampler must use the same arithmetic.

Shape letters: B batch, T tokens, V vocabulary, D hidden.
"""

from typing import Any

import torch
from megatron.core import tensor_parallel
from torch import Tensor


class Float32Head(tensor_parallel.ColumnParallelLinear):  # type: ignore[misc]
    """A vocabulary projection whose product is taken in fp32 whatever the parameter type."""

    def forward(
        self, input_: Tensor, weight: Tensor | None = None, **kwargs: Any
    ) -> tuple[Tensor, Any]:
        """Logits in fp32 from hidden states of any type."""
        used = self.weight if weight is None else weight
        logits, bias = super().forward(input_.float(), weight=used.float(), **kwargs)
        return logits, bias


def target_logprobs(logits_BTV: Tensor, targets_BT: Tensor) -> Tensor:
    """Log-probability of each target under fp32 logits, [B, T]."""
    picked = torch.gather(logits_BTV, -1, targets_BT[..., None]).squeeze(-1)
    return picked - torch.logsumexp(logits_BTV, -1)
