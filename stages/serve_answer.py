"""The shape of answers in OpenAI's two formats, whole and streamed. Knows no network, no engine.

`finish_reason` is OpenAI's; `stop_reason` says more: the stop string, or `repetition` when the
model repeated itself (M1 section 3.2).
"""

import secrets
import time
from collections.abc import Sequence
from typing import Any, Literal

from m1.data_recipes.tokenizer import Tokenizer
from m1.model.decode import Completion
from m1.stages.serve_schema import CommonBody
from m1.stages.serve_text import TextStream

Format = Literal["text", "chat"]
_NAMES = {
    ("text", False): ("cmpl-", "text_completion"),
    ("text", True): ("cmpl-", "text_completion"),
    ("chat", False): ("chatcmpl-", "chat.completion"),
    ("chat", True): ("chatcmpl-", "chat.completion.chunk"),
}


class Answer:
    """One answer with its choices, as it comes into being."""

    def __init__(self, body: CommonBody, form: Format, *, tokenizer: Tokenizer, model: str) -> None:
        self.body = body
        self.form: Format = form
        self.tokenizer = tokenizer
        prefix, kind = _NAMES[form, body.stream]
        self.head = {
            "id": prefix + secrets.token_hex(12),
            "object": kind,
            "created": int(time.time()),
            "model": model,
        }
        sampling = body.sampling(tokenizer)
        self.stop_strings, self.stop_token_ids = sampling.stop_strings, sampling.stop_token_ids

    def whole(
        self, prompts: Sequence[Sequence[int]], completions: Sequence[Completion]
    ) -> dict[str, Any]:
        """The answer to a request that is not streamed."""
        choices = []
        for index, completion in enumerate(completions):
            stream = self.text_stream()
            text = stream.push(completion.token_ids) + stream.finish()
            choices.append(self._choice(index, text, completion, is_last=True))
            if self.body.return_token_ids:
                choices[-1]["prompt_token_ids"] = list(prompts[index // self.body.n])
        tokens = sum(len(completion.token_ids) for completion in completions)
        return {**self.head, "choices": choices, "usage": usage(prompts, tokens)}

    def text_stream(self) -> TextStream:
        """For the text of one choice."""
        return TextStream(self.tokenizer, self.stop_strings, self.stop_token_ids)

    def chunk(
        self, index: int, text: str, completion: Completion, *, is_last: bool
    ) -> dict[str, Any]:
        """New tokens of one choice of a streamed answer."""
        return {**self.head, "choices": [self._choice(index, text, completion, is_last=is_last)]}

    def opening(self, index: int) -> dict[str, Any]:
        """First chunk of a streamed chat choice: who speaks."""
        delta = {"role": "assistant", "content": ""}
        return {
            **self.head,
            "choices": [{"index": index, "delta": delta, "finish_reason": None}],
        }

    def usage_chunk(self, prompts: Sequence[Sequence[int]], tokens: int) -> dict[str, Any]:
        """Last chunk where `stream_options.include_usage` asks for it."""
        return {**self.head, "choices": [], "usage": usage(prompts, tokens)}

    def _choice(
        self, index: int, text: str, completion: Completion, *, is_last: bool
    ) -> dict[str, Any]:
        reason, detail = _reasons(completion) if is_last else (None, None)
        choice: dict[str, Any] = {"index": index, **self._content(text), "logprobs": None}
        choice |= {"finish_reason": reason, "stop_reason": detail}
        if self.body.wanted_logprobs() is not None:
            choice["logprobs"] = self._logprobs(completion)
        if self.body.return_token_ids:
            choice["token_ids"] = list(completion.token_ids)
        return choice

    def _content(self, text: str) -> dict[str, Any]:
        if self.form == "text":
            return {"text": text}
        if self.body.stream:
            return {"delta": {"content": text}}
        return {"message": {"role": "assistant", "content": text}}

    def _logprobs(self, completion: Completion) -> dict[str, Any]:
        texts = [self._text(token) for token in completion.token_ids]
        tops = completion.top_logprobs or ((),) * len(texts)
        if self.form == "text":
            return {
                "tokens": texts,
                "token_logprobs": list(completion.logprobs),
                "top_logprobs": [{self._text(t): value for t, value in top} for top in tops],
                "text_offset": _offsets(texts),
            }
        content = [
            {**self._entry(token, value), "top_logprobs": [self._entry(*pair) for pair in top]}
            for token, value, top in zip(
                completion.token_ids, completion.logprobs, tops, strict=True
            )
        ]
        return {"content": content, "refusal": None}

    def _entry(self, token: int, logprob: float) -> dict[str, Any]:
        text = self._text(token)
        return {"token": text, "logprob": logprob, "bytes": list(text.encode())}

    def _text(self, token: int) -> str:
        return self.tokenizer.decode([token])


def usage(prompts: Sequence[Sequence[int]], completion_tokens: int) -> dict[str, int]:
    """Token counts; a prompt counts once however many choices it has."""
    prompt_tokens = sum(len(prompt) for prompt in prompts)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


def _reasons(completion: Completion) -> tuple[str, str | None]:
    if completion.finish_reason == "repetition":
        return "stop", "repetition"
    return completion.finish_reason, completion.stop_string


def _offsets(texts: Sequence[str]) -> list[int]:
    """Where each token's text begins among those of the same chunk or answer."""
    offsets, at = [], 0
    for text in texts:
        offsets.append(at)
        at += len(text)
    return offsets
