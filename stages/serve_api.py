"""The OpenAI-compatible endpoints over a decoding thread.

What is kept out: requests without the key, with another Host than ours (a web page that resolves
its name to this machine), or larger than a prompt can be.
"""

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException as RoutingError
from starlette.middleware.trustedhost import TrustedHostMiddleware

from m1.data_recipes.tokenizer import Tokenizer
from m1.infra.errors import M1Error, UsageError
from m1.model.decode import Completion, Decoder
from m1.stages.serve_answer import Answer, Format
from m1.stages.serve_engine import (
    DecodingStoppedError,
    DecodingThread,
    Generation,
    Piece,
    ServerBusyError,
)
from m1.stages.serve_schema import (
    DEFAULT_COMPLETION_TOKENS,
    ChatBody,
    CommonBody,
    CompletionBody,
)

LARGEST_BODY_BYTES = 16 * 2**20  # ours: a million tokens of text and more
LISTEN_SECONDS = 0.5  # how often a waiting request looks whether its client is still there
_STATUS = {ServerBusyError: 503, DecodingStoppedError: 500, UsageError: 400}


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """What the endpoints need: the model by name, and who decodes it."""

    name: str
    decoder: Decoder
    tokenizer: Tokenizer
    thread: DecodingThread
    window_tokens: int
    created: int


class ClientLeftError(M1Error):
    """Nobody waits for the answer any more."""


def build_app(served: Served, *, key: str, hosts: Sequence[str]) -> FastAPI:
    """The application; the decoding thread lives as long as it does.

    Args:
        served: the model.
        key: bearer key that every /v1 request must carry.
        hosts: names that the Host header may hold, without port.
    """

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        served.thread.start()
        yield
        await asyncio.to_thread(served.thread.stop)

    app = FastAPI(title="m1 serve", lifespan=lifespan, docs_url=None, redoc_url=None,
                  openapi_url=None)  # fmt: skip
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(hosts), www_redirect=False)
    app.add_exception_handler(M1Error, _as_response)
    app.add_exception_handler(RoutingError, _as_response)
    app.include_router(_open_routes(served))
    app.include_router(_routes(served), prefix="/v1", dependencies=[Depends(_key_check(key))])
    return app


def _open_routes(served: Served) -> APIRouter:
    router = APIRouter()

    @router.get("/health")
    async def health() -> JSONResponse:
        alive = served.thread.is_alive
        return JSONResponse({"status": "ok" if alive else "stopped"}, 200 if alive else 503)

    return router


def _routes(served: Served) -> APIRouter:
    router = APIRouter()

    @router.get("/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [_model_entry(served)]}

    @router.get("/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        _check_model(served, name)
        return _model_entry(served)

    @router.post("/completions")
    async def completions(request: Request) -> Response:
        body = CompletionBody.parse(await _content(request))
        limit = body.max_tokens or DEFAULT_COMPLETION_TOKENS
        return await _answer(served, request, body, "text", limit)

    @router.post("/chat/completions")
    async def chat(request: Request) -> Response:
        body = ChatBody.parse(await _content(request))
        limit = body.max_completion_tokens or body.max_tokens or served.window_tokens
        return await _answer(served, request, body, "chat", limit)

    return router


def _key_check(key: str) -> Any:
    expected = f"Bearer {key}".encode()

    async def check(request: Request) -> None:
        given = request.headers.get("authorization", "").encode()
        if not secrets.compare_digest(given, expected):
            raise HTTPException(401, "the bearer key is missing or wrong")

    return check


def _model_entry(served: Served) -> dict[str, Any]:
    return {
        "id": served.name,
        "object": "model",
        "created": served.created,
        "owned_by": "m1",
        "max_model_len": served.window_tokens,
    }


def _check_model(served: Served, name: str | None) -> None:
    if name is not None and name != served.name:
        raise HTTPException(404, f"model = {name[:80]!r} is not served; accepted: {served.name}")


async def _content(request: Request) -> bytes:
    """The body, refused as soon as it is too large."""
    content = bytearray()
    async for part in request.stream():
        content += part
        if len(content) > LARGEST_BODY_BYTES:
            raise HTTPException(413, f"the body is larger than {LARGEST_BODY_BYTES} bytes")
    return bytes(content)


def _as_response(_request: Request, error: Exception) -> JSONResponse:
    """Errors in OpenAI's form."""
    if isinstance(error, RoutingError):
        status, text = error.status_code, str(error.detail)
    else:
        known = (code for kind, code in _STATUS.items() if isinstance(error, kind))
        status, text = next(known, 500), str(error)
    return JSONResponse({"error": _error(status, text, getattr(error, "field", None))}, status)


def _error(status: int, text: str, field: str | None = None) -> dict[str, Any]:
    kind = "invalid_request_error" if status < 500 else "server_error"
    return {"message": text, "type": kind, "param": field, "code": status}


async def _answer(
    served: Served, request: Request, body: CommonBody, form: Format, max_new_tokens: int
) -> Response:
    _check_model(served, body.model)
    # a long prompt takes a while to encode: not on the loop that serves everybody
    prompts, generations = await asyncio.to_thread(
        _generations, served, body, max_new_tokens, asyncio.get_running_loop()
    )
    answer = Answer(body, form, tokenizer=served.tokenizer, model=served.name)
    _submit(served, generations)
    if body.stream:
        events = _stream(served, answer, prompts, generations)
        return StreamingResponse(events, media_type="text/event-stream")
    try:
        done = [await _whole(request, generation) for generation in generations]
    finally:
        _forget(served, generations)
    return JSONResponse(answer.whole(prompts, done))


def _generations(
    served: Served, body: CommonBody, max_new_tokens: int, loop: asyncio.AbstractEventLoop
) -> tuple[list[list[int]], list[Generation]]:
    assert isinstance(body, CompletionBody | ChatBody)
    prompts = body.prompts(served.tokenizer)
    sampling = body.sampling(served.tokenizer)
    requests = [
        served.decoder.checked(request, sampling)
        for request in body.requests(prompts, max_new_tokens)
    ]
    return prompts, [
        Generation(request=request, sampling=sampling, is_streamed=body.stream, loop=loop)
        for request in requests
    ]


def _submit(served: Served, generations: Sequence[Generation]) -> None:
    """All or none."""
    try:
        for generation in generations:
            served.thread.submit(generation)
    except M1Error:
        _forget(served, generations)
        raise


def _forget(served: Served, generations: Sequence[Generation]) -> None:
    for generation in generations:
        served.thread.cancel(generation)


async def _whole(request: Request, generation: Generation) -> Completion:
    while True:
        try:
            piece = await asyncio.wait_for(generation.pieces.get(), LISTEN_SECONDS)
        except TimeoutError:
            if await request.is_disconnected():
                raise ClientLeftError("the client left") from None
            continue
        if isinstance(piece, M1Error):
            raise piece
        return piece.completion


async def _stream(
    served: Served,
    answer: Answer,
    prompts: Sequence[Sequence[int]],
    generations: Sequence[Generation],
) -> AsyncIterator[str]:
    """Server-sent events: chunks of all choices as they come, then `[DONE]`."""
    tokens = 0
    texts = [answer.text_stream() for _ in generations]
    try:
        if answer.form == "chat":
            for index in range(len(generations)):
                yield _event(answer.opening(index))
        async for index, piece in _merged(generations):
            text = texts[index].push(piece.completion.token_ids)
            text += texts[index].finish() if piece.is_last else ""
            tokens += len(piece.completion.token_ids)
            yield _event(answer.chunk(index, text, piece.completion, is_last=piece.is_last))
        if answer.body.stream_options and answer.body.stream_options.include_usage:
            yield _event(answer.usage_chunk(prompts, tokens))
        yield "data: [DONE]\n\n"
    except M1Error as error:  # the status line has long been sent
        yield _event({"error": _error(500, str(error))})
    finally:
        _forget(served, generations)


async def _merged(generations: Sequence[Generation]) -> AsyncIterator[tuple[int, Piece]]:
    """Pieces of all generations in the order of their arrival."""
    waiting = {
        asyncio.ensure_future(generation.pieces.get()): index
        for index, generation in enumerate(generations)
    }
    try:
        while waiting:
            ready, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in ready:
                index, piece = waiting.pop(task), task.result()
                if isinstance(piece, M1Error):
                    raise piece
                yield index, piece
                if not piece.is_last:
                    next_piece = asyncio.ensure_future(generations[index].pieces.get())
                    waiting[next_piece] = index
    finally:
        for task in waiting:
            task.cancel()


def _event(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content, ensure_ascii=False)}\n\n"
