"""Choosing the next token from logits, reproducibly for each request.

Randomness is a counter: the uniform number of a choice depends only on (seed, index of the new
token), so a request gets the same tokens in any batch. Not here: the network (`decode_network`)
and the batching (`decode_engine`).

Shape letters: B rows, V vocabulary, N blocks of the vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from m1.infra.errors import InvalidSettingError

SUM_BLOCK = 64  # two-level cumulative sum: block sums vectorise, a full cumsum does not
MOST_TOP_LOGPROBS = 20  # as many alternatives per token as OpenAI's API gives
_MASK_64 = (1 << 64) - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How tokens are chosen and when a completion stops.

    Args:
        temperature: divides the logits; 0 takes the most likely token.
        top_k: keep this many most likely tokens; 0 keeps all.
        top_p: keep the smallest set of tokens with at least this probability; 1 keeps all.
        stop_token_ids: a completion ends with the first of these (which is part of it).
        stop_strings: a completion ends with the token that completes the first of these.
        repetition_tokens: stop after this many consecutive sure tokens; 0 never stops
            (M1 section 3.2: 3,000).
        repetition_probability: a token is sure above this probability (M1 section 3.2: 0.99).
        top_logprobs: most likely tokens that are reported beside each chosen one.

    Raises:
        InvalidSettingError: a value out of its range.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    stop_token_ids: tuple[int, ...] = ()
    stop_strings: tuple[str, ...] = ()
    repetition_tokens: int = 3000
    repetition_probability: float = 0.99
    top_logprobs: int = 0

    def __post_init__(self) -> None:
        for field, valid, accepted in (
            ("temperature", 0 <= self.temperature < float("inf"), "a finite number >= 0"),
            ("top_k", self.top_k >= 0, ">= 0"),
            ("top_p", 0 < self.top_p <= 1, "in (0, 1]"),
            ("stop_strings", all(self.stop_strings), "strings that are not empty"),
            ("repetition_tokens", self.repetition_tokens >= 0, ">= 0"),
            ("repetition_probability", 0 < self.repetition_probability < 1, "in (0, 1)"),
            (
                "top_logprobs",
                0 <= self.top_logprobs <= MOST_TOP_LOGPROBS,
                f"0 to {MOST_TOP_LOGPROBS}",
            ),
        ):
            if not valid:
                value = getattr(self, field)
                raise InvalidSettingError(field=field, value=value, accepted=accepted)


@dataclass(frozen=True, slots=True, kw_only=True)
class Knobs:
    """Temperature, top-k and top-p of each row of a batch, [B] each."""

    temperature_B: NDArray[numpy.float32]
    top_k_B: NDArray[numpy.int64]
    top_p_B: NDArray[numpy.float32]

    @classmethod
    def of(cls, samplings: Sequence[Sampling]) -> "Knobs":
        """Those of `samplings`, one per row."""
        return cls(
            temperature_B=numpy.array([s.temperature for s in samplings], dtype=numpy.float32),
            top_k_B=numpy.array([s.top_k for s in samplings], dtype=numpy.int64),
            top_p_B=numpy.array([s.top_p for s in samplings], dtype=numpy.float32),
        )


def uniforms(seeds_B: NDArray[numpy.uint64], indices_B: NDArray[numpy.int64]) -> Tensor:
    """Numbers in [0, 1) as a hash of (seed, index), float64 [B]; splitmix64, applied twice."""
    mixed = _mix(_mix(seeds_B) + indices_B.astype(numpy.uint64))
    return torch.from_numpy((mixed >> numpy.uint64(11)).astype(numpy.float64) * 2.0**-53)


def wrap_seed(seed: int) -> int:
    """Any Python integer as an unsigned 64-bit seed."""
    return seed & _MASK_64


def _mix(x: NDArray[numpy.uint64]) -> NDArray[numpy.uint64]:
    x = x + numpy.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> numpy.uint64(30))) * numpy.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> numpy.uint64(27))) * numpy.uint64(0x94D049BB133111EB)
    return x ^ (x >> numpy.uint64(31))


def choose(logits_BV: Tensor, knobs: Knobs, uniform_B: Tensor) -> tuple[Tensor, Tensor]:
    """Next tokens [B] and their log-probabilities [B].

    The log-probability is that of softmax(logits / temperature) over the whole vocabulary, before
    top-k and top-p cut it: what a trainer can recompute. At temperature 0 it is that of
    temperature 1.
    """
    scaled_BV = _scaled(logits_BV, knobs.temperature_B)
    top_B1 = scaled_BV.amax(-1, keepdim=True)
    weights_BV = (scaled_BV - top_B1).exp_()  # at most 1: never overflows
    log_total_B = weights_BV.sum(-1).log()
    tokens_B = _inverse_distribution(_cut(weights_BV, knobs), uniform_B)
    if not knobs.temperature_B.all():
        is_greedy_B = torch.from_numpy(knobs.temperature_B == 0).to(tokens_B.device)
        tokens_B = torch.where(is_greedy_B, scaled_BV.argmax(-1), tokens_B)
    picked_B = scaled_BV.gather(-1, tokens_B[:, None])[:, 0]
    return tokens_B, picked_B - top_B1[:, 0] - log_total_B


def most_likely(logits_BV: Tensor, knobs: Knobs, count: int) -> tuple[Tensor, Tensor]:
    """The `count` most likely tokens of each row and their log-probabilities, [B, count] each."""
    logprobs_BV = _scaled(logits_BV, knobs.temperature_B).log_softmax(-1)
    values, tokens = logprobs_BV.topk(count, -1)
    return tokens, values


def _scaled(logits_BV: Tensor, temperature_B: NDArray[numpy.float32]) -> Tensor:
    if bool(((temperature_B == 1) | (temperature_B == 0)).all()):
        return logits_BV
    divisor_B = numpy.where(temperature_B == 0, numpy.float32(1), temperature_B)
    return logits_BV / torch.from_numpy(divisor_B).to(logits_BV.device)[:, None]


def _cut(weights_BV: Tensor, knobs: Knobs) -> Tensor:
    """Zero the weights outside top-k, then outside top-p; the usual case (both off) is free."""
    top_k_B = numpy.where(knobs.top_k_B == 0, weights_BV.shape[-1], knobs.top_k_B)
    is_cut_B = (top_k_B < weights_BV.shape[-1]) | (knobs.top_p_B < 1)
    if not is_cut_B.any():
        return weights_BV
    rows, top_k, top_p = (
        torch.from_numpy(array).to(weights_BV.device)
        for array in (numpy.flatnonzero(is_cut_B), top_k_B[is_cut_B], knobs.top_p_B[is_cut_B])
    )
    ordered, places = weights_BV[rows].sort(dim=-1, descending=True, stable=True)
    ordered *= torch.arange(ordered.shape[-1], device=rows.device) < top_k[:, None]
    before = ordered.cumsum(-1) - ordered
    kept = (before < top_p[:, None] * ordered.sum(-1, keepdim=True)) | (top_p[:, None] == 1)
    cut = torch.zeros_like(ordered).scatter_(-1, places, ordered * kept)
    return weights_BV.index_copy(0, rows, cut)


def _inverse_distribution(weights_BV: Tensor, uniform_B: Tensor) -> Tensor:
    """Tokens [B] whose cumulative weight first exceeds uniform x total; never a weightless one."""
    padded_BV = functional.pad(weights_BV, (0, -weights_BV.shape[-1] % SUM_BLOCK))
    blocks_BNC = torch.unflatten(padded_BV, -1, (-1, SUM_BLOCK))
    ends_BN = blocks_BNC.sum(-1).double().cumsum(-1)
    target_B1 = uniform_B[:, None].to(ends_BN) * ends_BN[:, -1:]
    target_B1 = torch.minimum(target_B1, _just_below(ends_BN[:, -1:]))
    block_B1 = torch.searchsorted(ends_BN, target_B1, right=True)
    before_B1 = functional.pad(ends_BN, (1, 0)).gather(-1, block_B1)
    inside_BC = blocks_BNC.gather(1, block_B1[..., None].expand(-1, 1, SUM_BLOCK))[:, 0]
    cumulative_BC = inside_BC.double().cumsum(-1)
    rest_B1 = torch.minimum(target_B1 - before_B1, _just_below(cumulative_BC[:, -1:]))
    place_B1 = torch.searchsorted(cumulative_BC, rest_B1, right=True)
    return (block_B1 * SUM_BLOCK + place_B1)[:, 0]


def _just_below(x: Tensor) -> Tensor:
    return torch.nextafter(x, torch.zeros_like(x))
