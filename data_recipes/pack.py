"""Training windows from shards and examples. Every batch is a pure function of its step.

A resumed job asks for step n and gets what the interrupted one would have seen: there is no
cursor to save. Rows are numbered through all steps; a plan answers `row(number)`.

Shape letters: B rows of one batch, T targets of a window (a row holds T + 1 tokens).
"""

import abc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from m1.data_recipes.interleave import apportion, interleave
from m1.data_recipes.shards import TokenShards
from m1.infra.errors import BadInputError, InvalidSettingError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "Example",
    "ExamplePlan",
    "MixedPlan",
    "TokenBatch",
    "TokenShards",
    "WindowPlan",
    "example_of",
]

OPEN_WINDOWS = 64  # first fit looks at this many unfinished windows


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenBatch:
    """Rows of one step.

    Args:
        tokens_BT: int64 [B, T + 1].
        document_ids_BT: int32 [B, T + 1]; 0, 1, 2 ... from left to right in each row.
        loss_mask_BT: float32 [B, T], one weight per target `tokens_BT[:, 1:]`.
    """

    tokens_BT: "Tensor"
    document_ids_BT: "Tensor"
    loss_mask_BT: "Tensor"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One window: int64 [T + 1], int32 [T + 1], float32 [T]."""

    tokens: NDArray[np.int64]
    document_ids: NDArray[np.int32]
    loss_mask: NDArray[np.float32]


class RowPlan(Protocol):
    """Something that knows every row of a training job in advance."""

    @property
    def window_tokens(self) -> int:
        """T."""
        ...

    @property
    def total_rows(self) -> int:
        """How many rows may be asked for."""
        ...

    def row(self, number: int) -> Row:
        """Row `number`, counted from the first step."""
        ...


def _row_from_pieces(
    pieces: Sequence[NDArray[np.int64]], masks: Sequence[NDArray[np.float32]] | None = None
) -> Row:
    """Join documents into one window; no target is predicted from another document."""
    tokens = np.concatenate(pieces)
    sizes = [len(piece) for piece in pieces]
    ids = np.repeat(np.arange(len(pieces), dtype=np.int32), sizes)
    weight = np.ones(len(tokens), np.float32) if masks is None else np.concatenate(masks)
    mask = weight[1:] * (ids[1:] == ids[:-1])
    return Row(tokens=tokens, document_ids=ids, loss_mask=mask.astype(np.float32))


def _batch_of(plan: RowPlan, numbers: Sequence[int]) -> TokenBatch:
    import torch

    rows = [plan.row(number) for number in numbers]
    return TokenBatch(
        tokens_BT=torch.from_numpy(np.stack([row.tokens for row in rows])),
        document_ids_BT=torch.from_numpy(np.stack([row.document_ids for row in rows])),
        loss_mask_BT=torch.from_numpy(np.stack([row.loss_mask for row in rows])),
    )


class _Plan(abc.ABC):
    """What all plans share: numbering of rows, ranks, and the batch itself."""

    def __init__(self, *, window_tokens: int, windows_per_step: int, steps: int) -> None:
        for name, value in (
            ("window_tokens", window_tokens),
            ("windows_per_step", windows_per_step),
            ("steps", steps),
        ):
            if value < 1:
                raise InvalidSettingError(field=name, value=value, accepted="at least 1")
        self._window_tokens = window_tokens
        self.windows_per_step = windows_per_step
        self.steps = steps

    @property
    def window_tokens(self) -> int:
        """T: targets per row."""
        return self._window_tokens

    @property
    def total_rows(self) -> int:
        """Rows of all steps."""
        return self.steps * self.windows_per_step

    @abc.abstractmethod
    def row(self, number: int) -> Row:
        """One row; each plan has its own."""

    def batch(self, step: int, *, rank: int = 0, world: int = 1) -> TokenBatch:
        """The rows of 0-based `step` that belong to `rank`, on the CPU.

        Raises:
            ValueError: step or rank out of range, or the rows do not divide among `world` ranks.
        """
        if not 0 <= step < self.steps:
            raise ValueError(f"step = {step}; accepted: 0 to {self.steps - 1}")
        if not 0 <= rank < world or self.windows_per_step % world:
            raise ValueError(
                f"rank {rank} of {world} ranks; accepted: a number of ranks that divides "
                f"windows_per_step = {self.windows_per_step}"
            )
        per_rank = self.windows_per_step // world
        first = step * self.windows_per_step + rank * per_rank
        return _batch_of(self, range(first, first + per_rank))


class _PackedKind:
    """One kind as an endless stream: each epoch is its documents in a new order."""

    def __init__(self, shards: TokenShards, kind: str, *, window_tokens: int, seed: int) -> None:
        self._shards, self._kind = shards, kind
        self._window_tokens, self._seed = window_tokens, seed
        self._epoch_tokens = shards.tokens(kind)
        self._order = (-1, np.zeros(0, np.int64), np.zeros(0, np.int64))

    def _epoch(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Document numbers in the order of `epoch`, and where each ends; only one is kept."""
        if self._order[0] != epoch:
            rng = _generator(self._seed, self._kind, epoch)
            order = rng.permutation(self._shards.documents(self._kind)).astype(np.int64)
            self._order = (epoch, order, np.cumsum(self._shards.lengths(self._kind)[order]))
        return self._order[1], self._order[2]

    def row(self, ordinal: int) -> Row:
        position = ordinal * self._window_tokens
        missing = self._window_tokens + 1
        pieces: list[NDArray[np.int64]] = []
        while missing:
            epoch, offset = divmod(position, self._epoch_tokens)
            order, ends = self._epoch(epoch)
            place = int(np.searchsorted(ends, offset, side="right"))
            remaining = min(int(ends[place]) - offset, missing)
            document = self._shards.document(self._kind, int(order[place]))
            start = len(document) - (int(ends[place]) - offset)
            pieces.append(document[start : start + remaining].astype(np.int64))
            position, missing = position + remaining, missing - remaining
        return _row_from_pieces(pieces)


class _LongKind:
    """One kind as windows that each lie inside one long document, in a new order each epoch."""

    def __init__(self, shards: TokenShards, kind: str, *, plan: "_LongChoice", seed: int) -> None:
        self._shards, self._kind, self._seed = shards, kind, seed
        self._window_tokens = plan.window_tokens
        self._documents = plan.documents(shards, kind)
        per_document = (shards.lengths(kind)[self._documents] - 1) // plan.window_tokens
        self._owner = np.repeat(self._documents, per_document)
        firsts = np.cumsum(per_document) - per_document
        self._place = np.arange(len(self._owner)) - np.repeat(firsts, per_document)

    def row(self, ordinal: int) -> Row:
        epoch, inside = divmod(ordinal, len(self._owner))
        order = _generator(self._seed, self._kind, epoch).permutation(len(self._owner))
        window = int(order[inside])
        number = int(self._owner[window])
        document = self._shards.document(self._kind, number)
        spare = (len(document) - 1) % self._window_tokens
        shift = int(_generator(self._seed, f"{self._kind}/{number}", epoch).integers(spare + 1))
        start = shift + int(self._place[window]) * self._window_tokens
        return _row_from_pieces(
            [document[start : start + self._window_tokens + 1].astype(np.int64)]
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _LongChoice:
    """Which documents are long enough: the wanted length, and one whole window."""

    window_tokens: int
    min_document_tokens: int

    def documents(self, shards: TokenShards, kind: str) -> NDArray[np.int64]:
        least = max(self.min_document_tokens, self.window_tokens + 1)
        return np.flatnonzero(shards.lengths(kind) >= least).astype(np.int64)


def _generator(seed: int, name: str, epoch: int) -> np.random.Generator:
    return np.random.default_rng([seed % 2**63, epoch, *name.encode()])


class WindowPlan(_Plan):
    """Windows of a weighted mixture of kinds.

    With `min_document_tokens` = 0 a kind's documents are joined and cut into windows; above 0
    only documents at least that long are used and a window never leaves its document. Kinds
    without usable documents are left out and the other weights grow; `shares` says the result.

    Args:
        shards: opened token shards.
        weights: share of rows per kind; need not add up to 1.
        window_tokens: T.
        windows_per_step: rows per step, all ranks together.
        steps: number of steps.
        seed: decides the order of documents.
        min_document_tokens: see above.
    """

    def __init__(  # noqa: PLR0913  # ours: the contract of the room, all keyword-only
        self,
        shards: TokenShards,
        *,
        weights: Mapping[str, float],
        window_tokens: int,
        windows_per_step: int,
        steps: int,
        seed: int,
        min_document_tokens: int = 0,
    ) -> None:
        super().__init__(
            window_tokens=window_tokens, windows_per_step=windows_per_step, steps=steps
        )
        choice = (
            _LongChoice(window_tokens=window_tokens, min_document_tokens=min_document_tokens)
            if min_document_tokens
            else None
        )
        self.shares = _usable_shares(shards, weights, choice)
        self._sources: list[_PackedKind | _LongKind] = [
            _LongKind(shards, kind, plan=choice, seed=seed)
            if choice
            else _PackedKind(shards, kind, window_tokens=window_tokens, seed=seed)
            for kind in self.shares
        ]
        self._source_of, self._ordinal_of = interleave(list(self.shares.values()), self.total_rows)

    def row(self, number: int) -> Row:
        """Row `number`, counted from the first step."""
        return self._sources[int(self._source_of[number])].row(int(self._ordinal_of[number]))


def _usable_shares(
    shards: TokenShards, weights: Mapping[str, float], choice: _LongChoice | None
) -> dict[str, float]:
    negative = {kind: weight for kind, weight in weights.items() if not 0 <= weight < float("inf")}
    if negative:
        raise InvalidSettingError(field="mixture", value=negative, accepted="weights of 0 or more")
    usable = {
        kind: weight
        for kind, weight in sorted(weights.items())
        if weight > 0
        and kind in shards.kinds
        and shards.tokens(kind)
        and (choice is None or choice.documents(shards, kind).size)
    }
    if not usable:
        longest = {kind: int(shards.lengths(kind).max(initial=0)) for kind in shards.kinds}
        need = f" of {choice.window_tokens + 1} tokens or more" if choice else ""
        raise BadInputError(
            f"no documents{need} of the kinds {', '.join(sorted(weights)) or '(none)'}; "
            f"longest document per kind: {longest}"
        )
    total = sum(usable.values())
    return {kind: weight / total for kind, weight in usable.items()}


class MixedPlan(_Plan):
    """Rows of several plans by share, spread evenly (for example 0.7 long, 0.3 replay).

    Args:
        plans: pairs of plan and share; all with the same window.
        windows_per_step: rows per step.
        steps: number of steps.
    """

    def __init__(
        self, plans: Sequence[tuple[RowPlan, float]], *, windows_per_step: int, steps: int
    ) -> None:
        used = [(plan, share) for plan, share in plans if share > 0]
        windows = {plan.window_tokens for plan, _ in used}
        if len(windows) != 1:
            raise ValueError(f"plans with one window and a positive share needed, got {windows}")
        super().__init__(
            window_tokens=windows.pop(), windows_per_step=windows_per_step, steps=steps
        )
        self._plans = [plan for plan, _ in used]
        shares = [share for _, share in used]
        self._source_of, self._ordinal_of = interleave(shares, self.total_rows)
        for plan, rows in zip(self._plans, apportion(shares, self.total_rows), strict=True):
            if plan.total_rows < rows:
                raise ValueError(f"a plan of {plan.total_rows} rows cannot give {rows}")

    def row(self, number: int) -> Row:
        """Row `number`, counted from the first step."""
        return self._plans[int(self._source_of[number])].row(int(self._ordinal_of[number]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One training sample; `loss_mask[i]` weighs `token_ids[i]` as a target."""

    token_ids: Sequence[int]
    loss_mask: Sequence[float]

    def __post_init__(self) -> None:
        if not self.token_ids or len(self.token_ids) != len(self.loss_mask):
            raise ValueError(
                f"{len(self.token_ids)} tokens with {len(self.loss_mask)} mask values; "
                "accepted: as many of both, at least one"
            )


def example_of(prompt_ids: Sequence[int], response_ids: Sequence[int]) -> Example:
    """An example that learns the response and only reads the prompt."""
    return Example(
        token_ids=(*prompt_ids, *response_ids),
        loss_mask=(0.0,) * len(prompt_ids) + (1.0,) * len(response_ids),
    )


def _first_fit(sizes: Sequence[int], capacity: int) -> list[list[int]]:
    """Indices per window, in order of opening; at most `OPEN_WINDOWS` windows stay open."""
    windows: list[list[int]] = []
    free: list[int] = []
    first_open = 0
    for index, size in enumerate(sizes):
        fits = (w for w in range(first_open, len(windows)) if free[w] >= size)
        window = next(fits, None)
        if window is None:
            windows.append([])
            free.append(capacity)
            window = len(windows) - 1
            first_open = max(0, len(windows) - OPEN_WINDOWS)
        windows[window].append(index)
        free[window] -= size
    return windows


class ExamplePlan(_Plan):
    """Examples packed whole, first fit; the rest of a window is padding without loss.

    The packing is drawn once from `seed`; each epoch shows the windows in a new order.

    Args:
        examples: none longer than `window_tokens` + 1.
        window_tokens: T.
        windows_per_step: rows per step, all ranks together.
        steps: number of steps.
        seed: decides packing and order.
        pad_id: fills windows.

    Raises:
        BadInputError: no example, or one that does not fit.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        *,
        window_tokens: int,
        windows_per_step: int,
        steps: int,
        seed: int,
        pad_id: int,
    ) -> None:
        super().__init__(
            window_tokens=window_tokens, windows_per_step=windows_per_step, steps=steps
        )
        longest = max((len(example.token_ids) for example in examples), default=0)
        if not 0 < longest <= window_tokens + 1:
            raise BadInputError(
                f"{len(examples)} examples, the longest of {longest} tokens; "
                f"accepted: at least one, none above window_tokens + 1 = {window_tokens + 1}"
            )
        self._seed, self._pad_id = seed, pad_id
        order = _generator(seed, "examples", 0).permutation(len(examples))
        self._examples = [examples[int(index)] for index in order]
        sizes = [len(example.token_ids) for example in self._examples]
        self._windows = _first_fit(sizes, window_tokens + 1)

    @property
    def windows_per_epoch(self) -> int:
        """Rows after which every example was seen once."""
        return len(self._windows)

    def row(self, number: int) -> Row:
        """Row `number`, counted from the first step."""
        epoch, inside = divmod(number, len(self._windows))
        order = _generator(self._seed, "windows", epoch).permutation(len(self._windows))
        chosen = [self._examples[index] for index in self._windows[int(order[inside])]]
        pieces = [np.asarray(example.token_ids, np.int64) for example in chosen]
        masks = [np.asarray(example.loss_mask, np.float32) for example in chosen]
        unused = self.window_tokens + 1 - sum(len(piece) for piece in pieces)
        if unused:
            pieces.append(np.full(unused, self._pad_id, np.int64))
            masks.append(np.zeros(unused, np.float32))
        return _row_from_pieces(pieces, masks)
