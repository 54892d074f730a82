"""Continuous batching: requests come and go while the others go on.

Rows of the state are kept in order: first those that write, then those whose prompt is still
being read, then the free ones. One step reads a piece of waiting prompts and writes one token for
every writing row, in one pass over the weights. Equal prompts that wait together are read once.

Not here: the network (`decode_network`) and the choice of a token (`sampling`).
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy
import torch
from numpy.typing import NDArray
from torch import Tensor

from m1.model.decode_network import DecodeNetwork
from m1.model.decode_state import Chunk, RowState
from m1.model.sampling import Knobs, Sampling, choose, most_likely, uniforms, wrap_seed
from m1.model.stop_strings import StopStrings, TextOf

FinishReason = Literal["stop", "length", "repetition"]
TopLogprobs = tuple[tuple[int, float], ...]

PREFILL_CHUNK_TOKENS = 128  # ours: of one row and pass; 64 to 256 measure equal on CPU
PREFILL_PASS_TOKENS = 1024  # ours: of all rows and one pass; bounds how long the others wait
FREE, WRITING, READING = 0, 1, 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One prompt to complete; the same seed gives the same tokens in any batch."""

    prompt_token_ids: Sequence[int]
    max_new_tokens: int
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """New tokens (a stop token included) with their log-probabilities (see `sampling.choose`).

    `stop_string` is the one that ended the text, if one did. `top_logprobs` holds, per new token,
    the most likely tokens that `Sampling.top_logprobs` asked for.
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: FinishReason
    stop_string: str | None = None
    top_logprobs: tuple[TopLogprobs, ...] = ()


@dataclass(slots=True, kw_only=True)
class _Live:
    """A request in a row, or on its way there."""

    ticket: int
    request: Request
    sampling: Sampling
    stops: StopStrings | None
    read_tokens: int = 0
    tops: list[TopLogprobs] = field(default_factory=list)
    twins: list["_Live"] = field(default_factory=list)  # the same prompt, read only here


class Engine:
    """Requests in flight over one state of the weights.

    Args:
        network: weights as they are now.
        max_batch: rows.
        prefill_chunk_tokens: prompt tokens of one row per step.
        text_of: text of token ids, needed for stop strings.
    """

    def __init__(
        self,
        network: DecodeNetwork,
        *,
        max_batch: int,
        prefill_chunk_tokens: int = PREFILL_CHUNK_TOKENS,
        text_of: TextOf | None = None,
    ) -> None:
        self.network = network
        self.prefill_chunk_tokens = prefill_chunk_tokens
        self.text_of = text_of
        self.rows = _Rows(network, max_batch)
        self.waiting: deque[_Live] = deque()
        self.next_ticket = 0

    @property
    def is_idle(self) -> bool:
        """Whether nothing is in flight."""
        return not self.waiting and not self.rows.writing and not self.rows.reading

    @property
    def is_reading(self) -> bool:
        """Whether some prompt has not been read to its end."""
        return bool(self.waiting or self.rows.reading)

    def submit(self, request: Request, sampling: Sampling) -> int:
        """Take a request that the decoder has checked; returns its ticket."""
        stops = None
        if sampling.stop_strings:
            assert self.text_of is not None  # Decoder.check refuses it
            stops = StopStrings(sampling.stop_strings, self.text_of)
        live = _Live(ticket=self.next_ticket, request=request, sampling=sampling, stops=stops)
        self.waiting.append(live)
        self.next_ticket += 1
        return live.ticket

    def cancel(self, ticket: int) -> None:
        """Forget a request; one that has ended or is unknown already is forgotten."""
        self.waiting = deque(live for live in self.waiting if live.ticket != ticket)
        self.rows.cancel(ticket)

    def written(self, ticket: int, start: int) -> Completion | None:
        """Tokens from number `start` on of a request in flight; None before its first one."""
        row = self.rows.row_of(ticket)
        return None if row is None else self.rows.completion(row, "length", start=start)

    @torch.no_grad()
    def step(self) -> dict[int, Completion]:
        """Read a piece of prompts, write one token per writing row; what has ended, by ticket."""
        self._admit()
        rows = self.rows
        writing, pieces = rows.writing, rows.next_pieces(self.prefill_chunk_tokens)
        if not writing and not pieces:
            return {}
        chunks, tokens = [], []
        if writing:
            position = rows.position[:writing]
            chunks.append(Chunk.of(0, position, numpy.ones_like(position), self.network.device))
            tokens.append(rows.token[:writing])
        if pieces:
            chunks.append(rows.reading_chunk(pieces))
            tokens.append(numpy.concatenate(pieces))
        hidden = self.network.hidden(rows.tensor(numpy.concatenate(tokens)), chunks, rows.state)
        finished = rows.write(hidden[:writing]) if writing else {}
        if finished or pieces:
            rows.advance(pieces, first=writing)
        return finished

    def _admit(self) -> None:
        """Give free rows to waiting requests, short prompts first so that chunks are even."""
        if not self.waiting or not self.rows.free:
            return
        count = min(self.rows.free, len(self.waiting))
        admitted = [self.waiting.popleft() for _ in range(count)]
        for live in sorted(admitted, key=lambda one: len(one.request.prompt_token_ids)):
            self.rows.admit(live)
        self.rows.arrange()


class _Rows:
    """Who sits in which row, and what has been written there.

    `kind` of rows 0 .. writing - 1 is WRITING, then come `reading` rows READING, the rest is FREE.
    `arrange` restores this order; the columns below are moved with the state.
    """

    def __init__(self, network: DecodeNetwork, capacity: int) -> None:
        self.network = network
        self.capacity = capacity
        self.writing = self.reading = 0
        self.promised = 0  # free rows that twins of reading rows will take
        embedding = network.weights["embedding.word_embeddings.weight"]
        self.state = RowState(network.config, rows=capacity, weight=embedding)
        self.kind = numpy.zeros(capacity, dtype=numpy.int8)
        self.live: NDArray[Any] = numpy.full(capacity, None, dtype=object)
        self.seed = numpy.zeros(capacity, dtype=numpy.uint64)
        self.limit = numpy.zeros(capacity, dtype=numpy.int64)
        self.count = numpy.zeros(capacity, dtype=numpy.int64)
        self.sure = numpy.zeros(capacity, dtype=numpy.int64)
        self.sure_limit = numpy.zeros(capacity, dtype=numpy.int64)
        self.sure_logprob = numpy.zeros(capacity, dtype=numpy.float32)
        self.position = numpy.zeros(capacity, dtype=numpy.int64)
        self.token = numpy.zeros(capacity, dtype=numpy.int64)
        self.temperature = numpy.ones(capacity, dtype=numpy.float32)
        self.top_k = numpy.zeros(capacity, dtype=numpy.int64)
        self.top_p = numpy.ones(capacity, dtype=numpy.float32)
        self.tokens = numpy.zeros((capacity, 64), dtype=numpy.int64)
        self.logprobs = numpy.zeros((capacity, 64), dtype=numpy.float32)

    @property
    def free(self) -> int:
        return self.capacity - self.writing - self.reading - self.promised

    def tensor(self, array: NDArray[Any]) -> Tensor:
        return torch.from_numpy(array).to(self.network.device)

    # ---- coming and going ------------------------------------------------------------------

    def admit(self, live: _Live) -> None:
        """Seat a request at the end; one whose prompt is about to be read waits for its twin."""
        prompt = live.request.prompt_token_ids
        row = self.writing + self.reading
        for other in self.live[:row][self.kind[:row] == READING]:
            if other.read_tokens == 0 and other.request.prompt_token_ids == prompt:
                other.twins.append(live)
                self.promised += 1
                return
        self.state.clear(self.tensor(numpy.array([row])))
        self._seat(row, live)
        self.kind[row] = READING if len(prompt) > 1 else WRITING
        self.reading += 1  # `arrange` counts anew

    def _seat(self, row: int, live: _Live) -> None:
        request, sampling = live.request, live.sampling
        self.live[row] = live
        self.seed[row] = wrap_seed(request.seed)
        self.limit[row] = request.max_new_tokens
        self.position[row] = len(request.prompt_token_ids) - 1
        self.token[row] = request.prompt_token_ids[-1]
        self.count[row] = self.sure[row] = 0
        self.sure_limit[row] = sampling.repetition_tokens or numpy.iinfo(numpy.int64).max
        self.sure_logprob[row] = numpy.log(sampling.repetition_probability)
        self.temperature[row] = sampling.temperature
        self.top_k[row], self.top_p[row] = sampling.top_k, sampling.top_p

    def row_of(self, ticket: int) -> int | None:
        rows = range(self.writing)
        return next((row for row in rows if self.live[row].ticket == ticket), None)

    def cancel(self, ticket: int) -> None:
        for row in range(self.writing + self.reading):
            live = self.live[row]
            kept = [twin for twin in live.twins if twin.ticket != ticket]
            self.promised -= len(live.twins) - len(kept)
            live.twins = kept
            if live.ticket == ticket:
                self._vacate(row, live)
        self.arrange()

    def _vacate(self, row: int, live: _Live) -> None:
        """Free a row; the first twin goes on reading where the request stopped."""
        if not live.twins:
            self.kind[row] = FREE
            return
        heir, *twins = live.twins
        heir.twins, heir.read_tokens = twins, live.read_tokens
        self.promised -= 1
        self._seat(row, heir)

    def arrange(self) -> None:
        """Writing rows first, then reading ones, without holes; moves as few as it can."""
        self.writing = int((self.kind == WRITING).sum())
        self.reading = int((self.kind == READING).sum())
        wanted = numpy.zeros_like(self.kind)
        wanted[: self.writing] = WRITING
        wanted[self.writing : self.writing + self.reading] = READING
        pairs = [
            (
                numpy.flatnonzero((self.kind == kind) & (wanted != kind)),
                numpy.flatnonzero((wanted == kind) & (self.kind != kind)),
            )
            for kind in (WRITING, READING)
        ]
        source, target = (numpy.concatenate(rows) for rows in zip(*pairs, strict=True))
        if source.size:
            self._move(source, target)
        self.kind = wanted
        self.live[self.writing + self.reading :] = None

    def _move(self, source: NDArray[Any], target: NDArray[Any]) -> None:
        self.state.move(self.tensor(source), self.tensor(target))
        for column in (
            self.live, self.seed, self.limit, self.count, self.sure, self.sure_limit,
            self.sure_logprob, self.position, self.token, self.temperature, self.top_k,
            self.top_p, self.tokens, self.logprobs,
        ):  # fmt: skip
            column[target] = column[source]

    # ---- reading prompts -------------------------------------------------------------------

    def next_pieces(self, chunk_tokens: int) -> list[NDArray[numpy.int64]]:
        """The next tokens of as many reading rows as fit into a pass, in row order.

        All but the last token of a prompt is read; the last is the first step's input.
        """
        pieces: list[NDArray[numpy.int64]] = []
        total = 0
        for live in self.live[self.writing : self.writing + self.reading]:
            start, prompt = live.read_tokens, live.request.prompt_token_ids
            size = min(chunk_tokens, len(prompt) - 1 - start)
            if pieces and total + size > PREFILL_PASS_TOKENS:
                break
            pieces.append(numpy.asarray(prompt[start : start + size], dtype=numpy.int64))
            total += size
        return pieces

    def reading_chunk(self, pieces: Sequence[NDArray[numpy.int64]]) -> Chunk:
        """Where the pieces go."""
        lives = self.live[self.writing : self.writing + len(pieces)]
        starts = numpy.array([live.read_tokens for live in lives])
        counts = numpy.array([len(piece) for piece in pieces])
        return Chunk.of(self.writing, starts, counts, self.network.device)

    def advance(self, pieces: Sequence[NDArray[numpy.int64]], *, first: int) -> None:
        """Note what has been read; rows that read all of their prompt write from now on.

        `first` is the first reading row of this step, before rows that ended made room.
        """
        for row, piece in enumerate(pieces, first):
            live = self.live[row]
            live.read_tokens += len(piece)
            if live.read_tokens == len(live.request.prompt_token_ids) - 1:
                self.kind[row] = WRITING
                self._seat_twins(row, live)
        self.arrange()

    def _seat_twins(self, row: int, live: _Live) -> None:
        """Copy what a row has read to free rows, for the requests with the same prompt."""
        twins, live.twins = live.twins, []
        if not twins:
            return
        targets = numpy.flatnonzero(self.kind == FREE)[: len(twins)]
        for target, twin in zip(targets, twins, strict=True):
            self._seat(int(target), twin)
        self.state.move(self.tensor(numpy.full_like(targets, row)), self.tensor(targets))
        self.kind[targets] = WRITING
        self.promised -= len(twins)

    # ---- writing ---------------------------------------------------------------------------

    def write(self, hidden_BD: Tensor) -> dict[int, Completion]:
        """One new token for every writing row; what has ended, by ticket. Leaves holes."""
        live = slice(0, self.writing)
        knobs = Knobs(
            temperature_B=self.temperature[live], top_k_B=self.top_k[live], top_p_B=self.top_p[live]
        )
        logits = self.network.logits(hidden_BD)
        uniform = uniforms(self.seed[live], self.count[live]).to(logits.device)
        tokens, logprobs = choose(logits, knobs, uniform)
        self._note_alternatives(logits, knobs)
        self._record(tokens.cpu().numpy(), logprobs.cpu().numpy())
        return self._finish()

    def _note_alternatives(self, logits_BV: Tensor, knobs: Knobs) -> None:
        wanted = [live.sampling.top_logprobs for live in self.live[: self.writing]]
        most = min(max(wanted), logits_BV.shape[-1])
        if not most:
            return
        tokens, logprobs = (part.tolist() for part in most_likely(logits_BV, knobs, most))
        for row, count in enumerate(wanted):
            if count:
                pairs = zip(tokens[row][:count], logprobs[row][:count], strict=True)
                self.live[row].tops.append(tuple(pairs))

    def _record(self, tokens: NDArray[Any], logprobs: NDArray[Any]) -> None:
        live = slice(0, self.writing)
        rows, count = numpy.arange(self.writing), self.count[live]
        if int(count.max()) >= self.tokens.shape[1]:
            self.tokens = numpy.concatenate([self.tokens, numpy.zeros_like(self.tokens)], 1)
            self.logprobs = numpy.concatenate([self.logprobs, numpy.zeros_like(self.logprobs)], 1)
        self.tokens[rows, count] = tokens
        self.logprobs[rows, count] = logprobs
        self.sure[live] = numpy.where(logprobs > self.sure_logprob[live], self.sure[live] + 1, 0)
        self.token[live] = tokens
        self.count[live] += 1
        self.position[live] += 1

    def _finish(self) -> dict[int, Completion]:
        rows = slice(0, self.writing)
        at_limit = (self.count[rows] >= self.limit[rows]).tolist()
        repeated = (self.sure[rows] >= self.sure_limit[rows]).tolist()
        finished: dict[int, Completion] = {}
        for row, token in enumerate(self.token[rows].tolist()):
            live = self.live[row]
            text = self._stop_string(row, live)
            if token in live.sampling.stop_token_ids or text is not None:
                finished[live.ticket] = self.completion(row, "stop", stop_string=text)
            elif repeated[row] or at_limit[row]:
                reason: FinishReason = "repetition" if repeated[row] else "length"
                finished[live.ticket] = self.completion(row, reason)
            else:
                continue
            self.kind[row] = FREE
        return finished

    def _stop_string(self, row: int, live: _Live) -> str | None:
        if live.stops is None:
            return None
        count = int(self.count[row])
        tail = self.tokens[row, max(0, count - live.stops.tail_tokens) : count]
        return live.stops.completed(tail.tolist())

    def completion(
        self,
        row: int,
        reason: FinishReason,
        *,
        stop_string: str | None = None,
        start: int = 0,
    ) -> Completion:
        """What a row has written, from token number `start` on."""
        count = int(self.count[row])
        return Completion(
            token_ids=tuple(self.tokens[row, start:count].tolist()),
            logprobs=tuple(self.logprobs[row, start:count].tolist()),
            finish_reason=reason,
            stop_string=stop_string,
            top_logprobs=tuple(self.live[row].tops[start:]),
        )
