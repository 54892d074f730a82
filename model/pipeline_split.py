"""Which layers each pipeline rank holds: the split whose slowest rank is the fastest.

Layers are not equally expensive (softmax attention grows with the window, the head belongs to the
last rank), so equal counts are not equal work. Work is counted as `m1.model.cost` counts it.
"""

from functools import cache
from itertools import accumulate
from math import inf

from m1.model.config import ModelConfig
from m1.model.cost.flops import prefill_flops_per_token


def layers_per_rank(model: ModelConfig, ranks: int, *, window_tokens: int) -> list[int]:
    """Number of consecutive layers of each pipeline rank, first to last; every rank gets one.

    Args:
        model: at least as many layers as ranks.
        ranks: pipeline-parallel ranks.
        window_tokens: mean cost of a softmax layer depends on it.
    """
    before = [0.0, *accumulate(layer_flops(model, window_tokens=window_tokens))]
    before[-1] += head_flops(model)

    @cache
    def slowest(rank_count: int, layers: int) -> tuple[float, float, int]:
        """Work of the slowest of the first ranks, spread of their work, layers of the last."""
        if rank_count == 1:
            return before[layers], before[layers] ** 2, layers
        best = (inf, inf, 0)
        for last in range(1, layers - rank_count + 2):
            own = before[layers] - before[layers - last]
            if own > best[0]:
                break  # more layers only make it slower
            worst, spread, _ = slowest(rank_count - 1, layers - last)
            best = min(best, (max(worst, own), spread + own**2, last))
        return best

    counts: list[int] = []
    left = model.num_layers
    for rank_count in range(ranks, 0, -1):
        counts.insert(0, slowest(rank_count, left)[2])
        left -= counts[0]
    return counts


def layer_flops(model: ModelConfig, *, window_tokens: int) -> list[float]:
    """Mean forward FLOPs per token of every layer, in order."""
    alone = {
        kind: prefill_flops_per_token(
            model.model_copy(update={"num_layers": 1, "softmax_every": every}),
            window_tokens=window_tokens,
        )
        - head_flops(model)
        for kind, every in (("softmax", 1), ("lightning", 2))
    }
    return [alone[model.layer_kind(layer)] for layer in range(model.num_layers)]


def head_flops(model: ModelConfig) -> float:
    """Forward FLOPs per token of the LM head; looking up an embedding costs none."""
    return 2.0 * model.vocabulary_size * model.hidden_size
