"""What one optimizer step looks like to a rank: how many tokens, in how many pieces, how kept."""

import math
from dataclasses import dataclass
from typing import Literal

from m1.model.config import ParallelLayout

Precision = Literal["bf16", "fp32"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepShape:
    """The batch of one optimizer step.

    Args:
        window_tokens: length of a window.
        windows_per_step: windows of the global batch.
        micro_batch_windows: windows of one forward pass of one rank.
        precision: type of parameters and activations.
        is_even: whether every data-parallel rank must get equally many whole micro batches, as
            `m1.stages.training.session` asks; reinforcement takes what comes.
    """

    window_tokens: int
    windows_per_step: int = 1
    micro_batch_windows: int = 1
    precision: Precision = "bf16"
    is_even: bool = True

    def __post_init__(self) -> None:
        for name in ("window_tokens", "windows_per_step", "micro_batch_windows"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)} (accepted: >= 1)")

    @property
    def element_bytes(self) -> int:
        """Bytes of a parameter or activation."""
        return 2 if self.precision == "bf16" else 4

    @property
    def optimizer_bytes(self) -> int:
        """Bytes of state per parameter: two fp32 Adam moments, and an fp32 copy under bf16."""
        return 12 if self.precision == "bf16" else 8

    def micro_batches(self, layout: ParallelLayout) -> int:
        """Forward passes of one rank per step."""
        return math.ceil(self.windows_per_step / (layout.data * self.micro_batch_windows))

    def rank_tokens(self, layout: ParallelLayout) -> float:
        """Tokens of one forward pass that one rank of a tensor group holds between layers."""
        window = self.window_tokens * self.micro_batch_windows
        return window / (layout.context * layout.tensor)
