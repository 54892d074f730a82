"""Generates completions for many requests at once, from the trainer's own weights.

Continuous batching: active rows are always the first n rows of the state; a finished row is
replaced by the last active one, new requests are prefilled behind them. Prompts go through the
block form a chunk at a time; then every row advances one token per step.

Not here: the network (`decode_network`), the choice of a token (`sampling`).
"""

import re
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy
import torch
from numpy.typing import NDArray
from torch import Tensor

from m1.model.config import ModelConfig
from m1.model.decode_network import Chunk, DecodeNetwork, RowState
from m1.model.sampling import Sampling, choose, uniforms, wrap_seed

__all__ = ["Completion", "Decoder", "FinishReason", "Request", "Sampling"]

FinishReason = Literal["stop", "length", "repetition"]

PREFILL_CHUNK_TOKENS = 128  # ours: 64 to 256 measure equal on CPU
ADMIT_SHARE = 8  # ours: prefill when 1/8 of the rows are free, so that prefills are batched too


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One prompt to complete; the same seed gives the same tokens in any batch."""

    prompt_token_ids: Sequence[int]
    max_new_tokens: int
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """New tokens (a stop token included) with their log-probabilities (see `sampling.choose`)."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: FinishReason


class Decoder:
    """Completes requests with a model that lives in this process, whole, on one rank.

    Holds references to the weights, never copies: each `generate` uses them as they are when it
    starts. Greedy choices and seeds make a request independent of its batch; its logits agree
    with those of any other batching to fp32 rounding.

    Args:
        model: a GPTModel of `m1.model.spec` or its weights by name.
        config: sizes of the model.
        rotary_base: by default that of the config; the extension stages raise it.
        prefill_chunk_tokens: prompt tokens per pass.
    """

    def __init__(
        self,
        model: torch.nn.Module | Mapping[str, Tensor],
        config: ModelConfig,
        *,
        rotary_base: float | None = None,
        prefill_chunk_tokens: int = PREFILL_CHUNK_TOKENS,
    ) -> None:
        if prefill_chunk_tokens < 1:
            raise ValueError(f"prefill_chunk_tokens = {prefill_chunk_tokens}; accepted: >= 1")
        named: Any = (
            model.named_parameters() if isinstance(model, torch.nn.Module) else model.items()
        )
        # wrappers of the trainer (data parallel, mixed precision) prefix `module.`
        self.weights = {re.sub(r"^(module\.)+", "", name): tensor for name, tensor in named}
        self.config = config
        self.rotary_base = config.rotary_base if rotary_base is None else rotary_base
        self.prefill_chunk_tokens = prefill_chunk_tokens

    @torch.no_grad()
    def generate(
        self, requests: Sequence[Request], sampling: Sampling, *, max_batch: int = 256
    ) -> list[Completion]:
        """Completions in the order of the requests.

        Raises:
            ValueError: a prompt is empty or holds an unknown token, a length is negative, or the
                weights are not those of a whole model.
        """
        for request in requests:
            self._check(request)
        if max_batch < 1:
            raise ValueError(f"max_batch = {max_batch}; accepted: >= 1")
        if not requests:
            return []
        network = DecodeNetwork(self.weights, self.config, rotary_base=self.rotary_base)
        rows = _Rows(network, min(max_batch, len(requests)), self.prefill_chunk_tokens)
        finished: dict[int, Completion] = {}
        waiting = deque(enumerate(requests))
        while waiting or rows.active:
            if waiting and rows.wants_more:
                rows.admit([waiting.popleft() for _ in range(min(rows.free, len(waiting)))])
            finished.update(rows.step(sampling))
        return [finished[number] for number in range(len(requests))]

    def _check(self, request: Request) -> None:
        ids = request.prompt_token_ids
        if len(ids) == 0 or request.max_new_tokens < 1:
            raise ValueError(
                f"prompt of {len(ids)} tokens, max_new_tokens = {request.max_new_tokens}; "
                "accepted: at least 1 each"
            )
        if min(ids) < 0 or max(ids) >= self.config.vocabulary_size:
            raise ValueError(
                f"prompt_token_ids reach from {min(ids)} to {max(ids)}; "
                f"accepted: 0 to {self.config.vocabulary_size - 1}"
            )


class _Rows:
    """The rows in flight: rows 0 .. active - 1 of every array belong to live requests."""

    def __init__(self, network: DecodeNetwork, capacity: int, chunk_tokens: int) -> None:
        self.network = network
        self.capacity = capacity
        self.chunk_tokens = chunk_tokens
        self.active = 0
        self.device = network.head_VD.device
        embedding = network.weights["embedding.word_embeddings.weight"]
        self.state = RowState(network.config, rows=capacity, weight=embedding)
        self.request = numpy.zeros(capacity, dtype=numpy.int64)
        self.seed = numpy.zeros(capacity, dtype=numpy.uint64)
        self.limit = numpy.zeros(capacity, dtype=numpy.int64)
        self.count = numpy.zeros(capacity, dtype=numpy.int64)
        self.sure = numpy.zeros(capacity, dtype=numpy.int64)
        self.position = numpy.zeros(capacity, dtype=numpy.int64)
        self.token = numpy.zeros(capacity, dtype=numpy.int64)
        self.tokens = numpy.zeros((capacity, 64), dtype=numpy.int64)
        self.logprobs = numpy.zeros((capacity, 64), dtype=numpy.float32)

    @property
    def free(self) -> int:
        return self.capacity - self.active

    @property
    def wants_more(self) -> bool:
        return self.active == 0 or self.free >= max(1, self.capacity // ADMIT_SHARE)

    def admit(self, requests: list[tuple[int, Request]]) -> None:
        """Prefill all but the last prompt token of each; the last one is the next step's input."""
        # longest first: rows whose prompt has ended are a tail that is simply left out
        requests = sorted(requests, key=lambda item: -len(item[1].prompt_token_ids))
        first = self.active
        for row, (number, request) in enumerate(requests, first):
            self.request[row] = number
            self.seed[row] = wrap_seed(request.seed)
            self.limit[row] = request.max_new_tokens
            self.position[row] = len(request.prompt_token_ids) - 1
            self.token[row] = request.prompt_token_ids[-1]
        self.active += len(requests)
        self.count[first : self.active] = 0
        self.sure[first : self.active] = 0
        self.state.clear(slice(first, self.active))
        self._prefill([request.prompt_token_ids[:-1] for _, request in requests], first)

    def _prefill(self, prompts: list[Sequence[int]], first: int) -> None:
        for start in range(0, len(prompts[0]), self.chunk_tokens):
            live = [prompt for prompt in prompts if len(prompt) > start]
            size = min(self.chunk_tokens, len(live[0]) - start)
            tokens = numpy.zeros((len(live), size), dtype=numpy.int64)
            counts = numpy.zeros(len(live), dtype=numpy.int64)
            for row, prompt in enumerate(live):
                piece = prompt[start : start + size]
                tokens[row, : len(piece)] = piece
                counts[row] = len(piece)
            positions = torch.arange(start, start + size, device=self.device)
            chunk = Chunk(
                first_row=first,
                positions_BC=positions.expand(len(live), -1),
                counts_B=self._tensor(counts),
                cached_tokens=start + size,
            )
            self.network.hidden(self._tensor(tokens), chunk, self.state)

    def _tensor(self, array: NDArray[Any]) -> Tensor:
        return torch.from_numpy(array).to(self.device)

    def step(self, sampling: Sampling) -> dict[int, Completion]:
        """One new token for every row; returns what has finished, by request number."""
        live = slice(0, self.active)
        position = self.position[live]
        chunk = Chunk(
            first_row=0,
            positions_BC=self._tensor(position)[:, None],
            counts_B=None,
            cached_tokens=int(position.max()) + 1,
        )
        hidden = self.network.hidden(self._tensor(self.token[live])[:, None], chunk, self.state)
        uniform = uniforms(self.seed[live], self.count[live]).to(self.device)
        tokens, logprobs = choose(self.network.logits(hidden[:, 0]), sampling, uniform)
        self._record(tokens.cpu().numpy(), logprobs.float().cpu().numpy(), sampling)
        return self._finish(sampling)

    def _record(self, tokens: NDArray[Any], logprobs: NDArray[Any], sampling: Sampling) -> None:
        live = slice(0, self.active)
        rows, count = numpy.arange(self.active), self.count[live]
        if int(count.max()) >= self.tokens.shape[1]:
            self.tokens = numpy.concatenate([self.tokens, numpy.zeros_like(self.tokens)], 1)
            self.logprobs = numpy.concatenate([self.logprobs, numpy.zeros_like(self.logprobs)], 1)
        self.tokens[rows, count] = tokens
        self.logprobs[rows, count] = logprobs
        is_sure = logprobs > numpy.log(sampling.repetition_probability)
        self.sure[live] = numpy.where(is_sure, self.sure[live] + 1, 0)
        self.token[live] = tokens
        self.count[live] += 1
        self.position[live] += 1

    def _finish(self, sampling: Sampling) -> dict[int, Completion]:
        live = slice(0, self.active)
        stopped = numpy.isin(self.token[live], sampling.stop_token_ids)
        repeated = numpy.zeros_like(stopped)
        if sampling.repetition_tokens:
            repeated = self.sure[live] >= sampling.repetition_tokens
        done = stopped | repeated | (self.count[live] >= self.limit[live])
        finished: dict[int, Completion] = {}
        for row in numpy.flatnonzero(done):
            reason: FinishReason = "repetition" if repeated[row] else "length"
            finished[int(self.request[row])] = self._completion(
                int(row), "stop" if stopped[row] else reason
            )
        if finished:
            self._compact(~done)
        return finished

    def _completion(self, row: int, reason: FinishReason) -> Completion:
        count = int(self.count[row])
        return Completion(
            token_ids=tuple(self.tokens[row, :count].tolist()),
            logprobs=tuple(self.logprobs[row, :count].tolist()),
            finish_reason=reason,
        )

    def _compact(self, survives: NDArray[numpy.bool_]) -> None:
        """Move the last surviving rows into the holes."""
        kept = int(survives.sum())
        holes = numpy.flatnonzero(~survives[:kept])
        movers = kept + numpy.flatnonzero(survives[kept:])
        self.active = kept
        if not holes.size:
            return
        self.state.move(self._tensor(movers), self._tensor(holes))
        for array in (
            self.request, self.seed, self.limit, self.count, self.sure, self.position, self.token,
            self.tokens, self.logprobs,
        ):  # fmt: skip
            array[holes] = array[movers]
