"""The thread that decodes: requests of all connections share one continuous batch.

The event loop submits and cancels; this thread is the only one that touches the engine. What a
request has written travels back through a queue of its own.
"""

import asyncio
import logging
import threading
from collections import deque
from dataclasses import dataclass, field

from m1.infra.errors import M1Error
from m1.model.decode import Completion, Engine, Request, Sampling

_LOG = logging.getLogger(__name__)


class ServerBusyError(M1Error):
    """As many requests as the server takes are in flight."""


class DecodingStoppedError(M1Error):
    """The decoding thread has ended; the server has to be started anew."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """New tokens of a request; `is_last` once, when it has ended."""

    completion: Completion
    is_last: bool


@dataclass(slots=True, kw_only=True, eq=False)
class Generation:
    """One request on its way through the engine; `pieces` is read by the event loop."""

    request: Request
    sampling: Sampling
    is_streamed: bool
    loop: asyncio.AbstractEventLoop
    pieces: asyncio.Queue[Piece | M1Error] = field(default_factory=asyncio.Queue)
    sent_tokens: int = 0

    def deliver(self, piece: Piece | M1Error) -> None:
        """Hand over from the decoding thread."""
        try:
            self.loop.call_soon_threadsafe(self.pieces.put_nowait, piece)
        except RuntimeError:  # the event loop has ended: nobody listens any more
            _LOG.debug("a completion ended after the server did")


class DecodingThread:
    """Steps the engine while there is work, sleeps while there is none."""

    def __init__(self, engine: Engine, *, most_requests: int) -> None:
        self.engine = engine
        self.most_requests = most_requests
        self._running: dict[int, Generation] = {}
        self._arriving: deque[Generation] = deque()
        self._leaving: set[Generation] = set()
        self._wake = threading.Condition()
        self._stop = False
        self._failure: M1Error | None = None
        self._thread = threading.Thread(target=self._run, name="decoding", daemon=True)

    @property
    def is_alive(self) -> bool:
        """Whether requests are being worked on."""
        return self._thread.is_alive() and self._failure is None

    def start(self) -> None:
        """Begin to decode."""
        self._thread.start()

    def stop(self) -> None:
        """End after the step in progress."""
        with self._wake:
            self._stop = True
            self._wake.notify()
        self._thread.join()

    def submit(self, generation: Generation) -> None:
        """Take a request that the decoder has checked.

        Raises:
            ServerBusyError: too many are in flight.
            DecodingStoppedError: the thread has ended.
        """
        with self._wake:
            if self._failure is not None:
                raise self._failure
            if len(self._running) + len(self._arriving) >= self.most_requests:
                raise ServerBusyError(f"{self.most_requests} requests are in flight; try later")
            self._arriving.append(generation)
            self._wake.notify()

    def cancel(self, generation: Generation) -> None:
        """Forget a request that nobody waits for any more."""
        with self._wake:
            self._leaving.add(generation)
            self._wake.notify()

    def _run(self) -> None:
        try:
            while self._next_changes():
                self._step()
        except Exception as error:  # noqa: BLE001  (nobody may wait forever)
            _LOG.exception("decoding failed")
            self._fail(DecodingStoppedError(f"decoding failed: {type(error).__name__}"))
        else:
            self._fail(DecodingStoppedError("the server is shutting down"))

    def _next_changes(self) -> bool:
        """Take in what arrived and left, waiting while there is nothing to do; false: the end."""
        with self._wake:
            self._wake.wait_for(
                lambda: self._stop or self._arriving or self._leaving or not self.engine.is_idle
            )
            while self._arriving:
                generation = self._arriving.popleft()
                ticket = self.engine.submit(generation.request, generation.sampling)
                self._running[ticket] = generation
            for ticket, generation in list(self._running.items()):
                if generation in self._leaving:
                    self.engine.cancel(ticket)
                    del self._running[ticket]
            self._leaving.clear()
            return not self._stop

    def _step(self) -> None:
        finished = self.engine.step()
        for ticket, completion in finished.items():
            with self._wake:
                generation = self._running.pop(ticket)
            rest = _after(completion, generation.sent_tokens)
            generation.deliver(Piece(completion=rest, is_last=True))
        for ticket, generation in self._running.items():
            if generation.is_streamed:
                self._deliver_new(ticket, generation)

    def _deliver_new(self, ticket: int, generation: Generation) -> None:
        completion = self.engine.written(ticket, generation.sent_tokens)
        if completion is not None and completion.token_ids:
            generation.sent_tokens += len(completion.token_ids)
            generation.deliver(Piece(completion=completion, is_last=False))

    def _fail(self, error: M1Error) -> None:
        with self._wake:
            self._failure = error
            waiting = [*self._running.values(), *self._arriving]
            self._running.clear()
            self._arriving.clear()
        for generation in waiting:
            generation.deliver(error)


def _after(completion: Completion, start: int) -> Completion:
    return Completion(
        token_ids=completion.token_ids[start:],
        logprobs=completion.logprobs[start:],
        finish_reason=completion.finish_reason,
        stop_string=completion.stop_string,
        top_logprobs=completion.top_logprobs[start:],
    )
