"""What the decoder remembers of each row, and which new tokens of which rows come next.

Not here: the arithmetic (`decode_network`), and which request sits in which row (`decode_engine`).

Shape letters: B rows, C most new tokens of a row, R new tokens of all rows, T cached tokens,
H query heads, G key/value heads, W head width.
"""

from dataclasses import dataclass

import numpy
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from m1.model.config import ModelConfig

SMALLEST_CACHE_TOKENS = 64  # ours; grows by doubling


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """New tokens of consecutive rows of the state, packed row after row.

    Args:
        rows: the rows of the state that the tokens belong to.
        longest: most tokens of one row, C.
        cached_tokens: the largest position of the chunk plus one.
        counts_B: tokens per row.
        positions_R: position of each token in its row.
        row_R: row of each token, as an index of the state.
        slots_R: place of each token in a padded [B * C] array; None if nothing is padded.
    """

    rows: slice
    longest: int
    cached_tokens: int
    counts_B: Tensor
    positions_R: Tensor
    row_R: Tensor
    slots_R: Tensor | None

    @classmethod
    def of(
        cls,
        first_row: int,
        starts_B: NDArray[numpy.int64],
        counts_B: NDArray[numpy.int64],
        device: torch.device,
    ) -> "Chunk":
        """`counts_B` (at least 1) new tokens of each row, the first at position `starts_B`."""
        longest = int(counts_B.max())
        row = numpy.repeat(numpy.arange(len(counts_B)), counts_B)
        place = numpy.arange(len(row)) - numpy.repeat(counts_B.cumsum() - counts_B, counts_B)
        is_padded = len(row) != longest * len(counts_B)

        def tensor(array: NDArray[numpy.int64]) -> Tensor:
            return torch.from_numpy(array).to(device)

        return cls(
            rows=slice(first_row, first_row + len(counts_B)),
            longest=longest,
            cached_tokens=int((starts_B + counts_B).max()),
            counts_B=tensor(counts_B),
            positions_R=tensor(starts_B[row] + place),
            row_R=tensor(row + first_row),
            slots_R=tensor(row * longest + place) if is_padded else None,
        )

    @property
    def tokens(self) -> int:
        """New tokens of all rows, R."""
        return len(self.row_R)

    @property
    def is_single(self) -> bool:
        """Whether every row has exactly one new token."""
        return self.longest == 1

    def padded(self, packed: Tensor) -> Tensor:
        """[R, ...] as [B, C, ...], zeros on the right."""
        size = self.rows.stop - self.rows.start
        if self.slots_R is None:
            return packed.unflatten(0, (size, self.longest))
        filled = packed.new_zeros(size * self.longest, *packed.shape[1:])
        return filled.index_copy_(0, self.slots_R, packed).unflatten(0, (size, self.longest))

    def packed(self, padded: Tensor) -> Tensor:
        """[B, C, ...] as [R, ...], without the padding."""
        flat = padded.flatten(0, 1)
        return flat if self.slots_R is None else flat.index_select(0, self.slots_R)


class RowState:
    """Lightning states, keys and values of each row, by layer."""

    def __init__(self, config: ModelConfig, *, rows: int, weight: Tensor) -> None:
        width, groups = config.head_width, config.num_key_value_heads
        self.lightning: dict[int, Tensor] = {}
        self.keys: dict[int, Tensor] = {}
        self.values: dict[int, Tensor] = {}
        for layer in range(config.num_layers):
            if config.layer_kind(layer) == "lightning":
                # fp32: a bf16 state cost MiniMax lost characters and repetition (facts 6.3)
                self.lightning[layer] = torch.zeros(
                    rows, config.num_heads, width, width, device=weight.device
                )
            else:
                self.keys[layer] = weight.new_zeros(rows, groups, 0, width)
                self.values[layer] = weight.new_zeros(rows, groups, 0, width)

    def reserve(self, cached_tokens: int) -> None:
        """Make room for `cached_tokens` per row; grows by doubling."""
        for cache in (self.keys, self.values):
            for layer, tensor in cache.items():
                have = tensor.shape[2]
                if have < cached_tokens:
                    room = max(cached_tokens, 2 * have, SMALLEST_CACHE_TOKENS) - have
                    cache[layer] = functional.pad(tensor, (0, 0, 0, room))

    def clear(self, rows: Tensor) -> None:
        """Forget these rows. Keys and values need nothing: they are overwritten before use."""
        for state in self.lightning.values():
            state[rows] = 0

    def move(self, source: Tensor, target: Tensor) -> None:
        """Copy rows `source` over rows `target`; the two may overlap."""
        for cache in (self.lightning, self.keys, self.values):
            for tensor in cache.values():
                tensor[target] = tensor[source]
