"""Choosing the next token from logits, reproducibly for each request.

Randomness is a counter: the uniform number of a choice depends only on (seed, index of the new
token), so a request gets the same tokens in any batch. Not here: the network (`decode_network`)
and the batching (`decode`).

Shape letters: B rows, V vocabulary, N blocks of the vocabulary.
"""

from dataclasses import dataclass

import numpy
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

SUM_BLOCK = 64  # two-level cumulative sum: block sums vectorise, a full cumsum does not
_MASK_64 = (1 << 64) - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How tokens are chosen and when a completion stops.

    Args:
        temperature: divides the logits; 0 takes the most likely token.
        top_k: keep this many most likely tokens; 0 keeps all.
        top_p: keep the smallest set of tokens with at least this probability; 1 keeps all.
        stop_token_ids: a completion ends with the first of these (which is part of it).
        repetition_tokens: stop after this many consecutive sure tokens; 0 never stops
            (M1 section 3.2: 3,000).
        repetition_probability: a token is sure above this probability (M1 section 3.2: 0.99).
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    stop_token_ids: tuple[int, ...] = ()
    repetition_tokens: int = 3000
    repetition_probability: float = 0.99

    def __post_init__(self) -> None:
        for field, valid, accepted in (
            ("temperature", 0 <= self.temperature < float("inf"), ">= 0"),
            ("top_k", self.top_k >= 0, ">= 0"),
            ("top_p", 0 < self.top_p <= 1, "in (0, 1]"),
            ("repetition_tokens", self.repetition_tokens >= 0, ">= 0"),
            ("repetition_probability", 0 < self.repetition_probability < 1, "in (0, 1)"),
        ):
            if not valid:
                raise ValueError(f"{field} = {getattr(self, field)!r}; accepted: {accepted}")


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


def choose(logits_BV: Tensor, sampling: Sampling, uniform_B: Tensor) -> tuple[Tensor, Tensor]:
    """Next tokens [B] and their log-probabilities [B].

    The log-probability is that of softmax(logits / temperature) over the whole vocabulary, before
    top-k and top-p cut it: what a trainer can recompute. At temperature 0 it is that of
    temperature 1.
    """
    scaled = (
        logits_BV / sampling.temperature if sampling.temperature not in (0.0, 1.0) else logits_BV
    )
    top_B1, greedy_B1 = scaled.max(-1, keepdim=True)
    weights_BV = torch.exp(scaled - top_B1)  # at most 1: never overflows
    log_total_B = weights_BV.sum(-1).log()
    if sampling.temperature == 0:
        return greedy_B1[:, 0], -log_total_B
    tokens_B = _inverse_distribution(_cut(weights_BV, sampling), uniform_B)
    picked_B = scaled.gather(-1, tokens_B[:, None])[:, 0]
    return tokens_B, picked_B - top_B1[:, 0] - log_total_B


def _cut(weights_BV: Tensor, sampling: Sampling) -> Tensor:
    """Zero the weights outside top-k, then outside top-p; the usual case (both off) is free."""
    if 0 < sampling.top_k < weights_BV.shape[-1]:
        kept, places = weights_BV.topk(sampling.top_k, -1)
        weights_BV = torch.zeros_like(weights_BV).scatter_(-1, places, kept)
    if sampling.top_p < 1:
        ordered, places = weights_BV.sort(dim=-1, descending=True, stable=True)
        before = ordered.cumsum(-1) - ordered
        ordered = ordered * (before < sampling.top_p * ordered.sum(-1, keepdim=True))
        weights_BV = torch.zeros_like(weights_BV).scatter_(-1, places, ordered)
    return weights_BV


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
