"""pass@k from n samples per problem, with its confidence interval. Pure.

The unbiased estimator 1 - C(n - c, k) / C(n, k) of Chen et al. 2021 (arXiv 2107.03374), section
2.1, for a problem that c of n samples solve; the interval resamples problems.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 2000  # ours
_SEED = 20_210_707  # ours: the interval of the same counts is always the same


@dataclass(frozen=True, slots=True, kw_only=True)
class PassAtK:
    """An estimate with the bounds of its 95 % interval."""

    value: float
    low: float
    high: float


def pass_at_k(right_counts: Sequence[int], *, samples: int, k: int) -> PassAtK:
    """Mean over problems.

    Args:
        right_counts: right samples of each problem.
        samples: samples per problem, n.
        k: how many of them one may try; 1 to n.

    Raises:
        ValueError: k or a count is out of range, or there are no problems.
    """
    if not right_counts or not 1 <= k <= samples:
        raise ValueError(
            f"{len(right_counts)} problems, k = {k}; accepted: 1 problem or more, 1 to {samples}"
        )
    if not all(0 <= count <= samples for count in right_counts):
        raise ValueError(f"right counts {sorted(set(right_counts))}; accepted: 0 to {samples}")
    every = np.array(
        [1.0 - math.comb(samples - c, k) / math.comb(samples, k) for c in right_counts]
    )
    drawn = np.random.default_rng(_SEED).integers(0, len(every), (RESAMPLES, len(every)))
    low, high = np.quantile(every[drawn].mean(1), [0.025, 0.975])
    return PassAtK(value=float(every.mean()), low=float(low), high=float(high))


def powers_of_two(limit: int) -> list[int]:
    """1, 2, 4, ... up to `limit`, and `limit` itself."""
    return sorted({2**e for e in range(limit.bit_length()) if 2**e <= limit} | {limit})
