"""The LM head in fp32, and the log-probabilities of targets.

MiniMax found the training/sampling mismatch at the head and keeps it in fp32, forward and
backward (M1 section 3.2). Trainer and sampler must use the same arithmetic.

Shape letters: B batch, T tokens, V vocabulary, D hidden.
"""

from typing import Any

from megatron.core import tensor_parallel
from torch import Tensor
from torch.nn import functional

from m1.model.head_loss import head_logprobs


class Float32Head(tensor_parallel.ColumnParallelLinear):  # type: ignore[misc]
    """A vocabulary projection whose product is taken in fp32 whatever the parameter type."""

    def forward(
        self, input_: Tensor, weight: Tensor | None = None, **kwargs: Any
    ) -> tuple[Tensor, Any]:
        """Logits in fp32 from hidden states of any type."""
        used = self.weight if weight is None else weight
        logits, bias = super().forward(input_.float(), weight=used.float(), **kwargs)
        return logits, bias

    def logprobs(self, hidden_TBD: Tensor, targets_TB: Tensor) -> Tensor:
        """Log-probability of each target, [T, B], without ever holding all logits."""
        group = self.tp_group if self.tp_group.size() > 1 else None
        if self.sequence_parallel:
            hidden_TBD = tensor_parallel.gather_from_sequence_parallel_region(
                hidden_TBD, tensor_parallel_output_grad=True, group=self.tp_group
            )
        elif group is not None:
            hidden_TBD = tensor_parallel.copy_to_tensor_model_parallel_region(
                hidden_TBD, group=group
            )
        logprobs_R, _entropy_R = head_logprobs(
            hidden_TBD.flatten(0, 1), self.weight, targets_TB.flatten(), group=group
        )
        return logprobs_R.view(targets_TB.shape)


def target_logprobs(logits_RCV: Tensor, targets_RC: Tensor, *, tensor_ranks: int = 1) -> Tensor:
    """Log-probability of each target, in the shape of the targets (any two leading axes).

    Args:
        logits_RCV: fp32 logits; with `tensor_ranks` > 1 this rank's part of the vocabulary.
        targets_RC: token ids.
        tensor_ranks: tensor-parallel ranks that share the vocabulary.
    """
    if tensor_ranks > 1:
        losses: Tensor = tensor_parallel.vocab_parallel_cross_entropy(
            logits_RCV, targets_RC.contiguous()
        )
        return -losses
    losses = functional.cross_entropy(
        logits_RCV.flatten(0, 1), targets_RC.flatten(), reduction="none"
    )
    return -losses.view_as(targets_RC)
