"""The chat format, defined once: training, decoding, serving and export all use this file.

Source: M1's chat template (facts sheet 1.1); the thought tags as tokens of their own are ours.
User text cannot forge a role: special strings inside a message stay ordinary characters.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from m1.data_recipes.tokenizer import (
    BEGIN_OF_DOCUMENT,
    BEGINNING_OF_SENTENCE,
    END_OF_SENTENCE,
    END_THINK,
    PAD,
    SPECIAL,
    THINK,
    Tokenizer,
)

Role = Literal["system", "user", "assistant"]

ROLE_LINES: dict[str, str] = {
    "system": "system ai_setting=assistant\n",
    "user": "user name=user\n",
    "assistant": "ai name=assistant\n",
}

CHAT_TEMPLATE = (
    "{{ '<begin_of_document>' }}"
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}"
    "{{ '<beginning_of_sentence>system ai_setting=assistant\\n' }}"
    "{% elif message['role'] == 'user' %}"
    "{{ '<beginning_of_sentence>user name=user\\n' }}"
    "{% elif message['role'] == 'assistant' %}"
    "{{ '<beginning_of_sentence>ai name=assistant\\n' }}"
    "{% else %}{{ raise_exception('role must be system, user or assistant') }}{% endif %}"
    "{{ message['content'] }}{{ '<end_of_sentence>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<beginning_of_sentence>ai name=assistant\\n' }}{% endif %}"
)
"""Jinja form of `prompt_token_ids`, for tokenizer_config.json."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One turn of a conversation."""

    role: Role
    content: str

    def __post_init__(self) -> None:
        if self.role not in ROLE_LINES:
            raise ValueError(f"role = {self.role!r}; accepted: {', '.join(ROLE_LINES)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """What the assistant wrote. `well_formed`: one thought, one answer, ended, nothing else."""

    thought: str
    answer: str
    well_formed: bool


def prompt_token_ids(tokenizer: Tokenizer, messages: Sequence[Message]) -> list[int]:
    """Ids of the conversation so far, ending where the assistant's text begins."""
    ids = [tokenizer.token_id(BEGIN_OF_DOCUMENT)]
    newline: list[int] = tokenizer.encode("\n")
    for message in messages:
        ids.append(tokenizer.token_id(BEGINNING_OF_SENTENCE))
        ids += tokenizer.encode(ROLE_LINES[message.role] + message.content)
        ids.append(tokenizer.end_of_sentence_id)
        ids += newline
    ids.append(tokenizer.token_id(BEGINNING_OF_SENTENCE))
    return ids + tokenizer.encode(ROLE_LINES["assistant"])


def response_token_ids(tokenizer: Tokenizer, thought: str, answer: str) -> list[int]:
    """Ids of `<think>thought</think>answer<end_of_sentence>`."""
    return [
        tokenizer.token_id(THINK),
        *tokenizer.encode(thought),
        tokenizer.token_id(END_THINK),
        *tokenizer.encode(answer),
        tokenizer.end_of_sentence_id,
    ]


def parse_response(tokenizer: Tokenizer, ids: Sequence[int]) -> Response:
    """Split generated ids; never raises. Padding after the end is ignored.

    A response that is not well formed keeps what could be found: text after the last `</think>`
    is the answer, everything before it the thought.
    """
    body = _without_padding(tokenizer, ids)
    ended = bool(body) and body[-1] == tokenizer.end_of_sentence_id
    inner = body[:-1] if ended else body
    close = tokenizer.token_id(END_THINK)
    cut = len(inner) - 1 - inner[::-1].index(close) if close in inner else len(inner)
    begins = inner[:1] == [tokenizer.token_id(THINK)]
    thought, answer = inner[1 if begins else 0 : cut], inner[cut + 1 :]
    is_clean = all(number >= len(SPECIAL) for number in (*thought, *answer))
    return Response(
        thought=tokenizer.decode(thought, skip_special=True),
        answer=tokenizer.decode(answer, skip_special=True),
        well_formed=ended and begins and cut < len(inner) and is_clean,
    )


def _without_padding(tokenizer: Tokenizer, ids: Sequence[int]) -> list[int]:
    pad = tokenizer.token_id(PAD)
    end = len(ids)
    while end and ids[end - 1] == pad:
        end -= 1
    return [int(number) for number in ids[:end]]


__all__ = [
    "CHAT_TEMPLATE",
    "END_OF_SENTENCE",
    "Message",
    "Response",
    "parse_response",
    "prompt_token_ids",
    "response_token_ids",
]
