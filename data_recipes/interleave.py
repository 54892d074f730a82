"""Shares of several sources as whole numbers, spread evenly. Knows nothing about what is shared."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def apportion(weights: Sequence[float], count: int) -> list[int]:
    """Whole numbers that add up to `count`, nearest to the weights (largest remainder)."""
    total = sum(weights)
    ideal = [count * weight / total for weight in weights]
    floors = [int(value) for value in ideal]
    by_remainder = sorted(range(len(weights)), key=lambda i: (floors[i] - ideal[i], i))
    for index in by_remainder[: count - sum(floors)]:
        floors[index] += 1
    return floors


def interleave(weights: Sequence[float], count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Spread sources evenly over `count` places.

    Returns:
        source of each place, and the how-manieth place of that source it is: int64 [count] each.
    """
    counts = apportion(weights, count)
    sources = np.repeat(np.arange(len(counts), dtype=np.int64), counts)
    ordinals = np.concatenate([np.arange(n, dtype=np.int64) for n in counts])
    ideal = (ordinals + 0.5) / np.asarray(counts, dtype=np.float64)[sources]
    order = np.argsort(ideal, kind="stable")
    return sources[order], ordinals[order]
