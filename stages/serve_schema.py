"""What clients may ask for: OpenAI's completions and chat requests, and what they become.

Fields that change an answer in a way this server cannot are refused by name, never ignored.
`top_k` and `return_token_ids` are additions (vLLM has both under these names): reinforcement
needs the exact tokens, not their text.
"""

import secrets
from abc import abstractmethod
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from m1.data_recipes.chat import Message, prompt_token_ids
from m1.data_recipes.tokenizer import Tokenizer
from m1.infra.errors import InvalidSettingError
from m1.model.decode import Request, Sampling
from m1.model.sampling import MOST_TOP_LOGPROBS

MOST_CHOICES = 64  # ours: prompts times n of one request
MOST_STOP_STRINGS = 4  # as OpenAI's
LONGEST_STOP_CHARACTERS = 256  # ours
DEFAULT_COMPLETION_TOKENS = 16  # as OpenAI's
_SHOWN_CHARACTERS = 80

StopString = Annotated[str, Field(min_length=1, max_length=LONGEST_STOP_CHARACTERS)]
StopStringList = Annotated[list[StopString], Field(max_length=MOST_STOP_STRINGS)]
TokenIds = list[int]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class StreamOptions(_Body):
    """Extras of a streamed answer."""

    include_usage: bool = False


class CommonBody(_Body):
    """What both endpoints understand."""

    model: str | None = None
    temperature: float = Field(1.0, ge=0, le=2)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=0, le=1_000_000)
    n: int = Field(1, ge=1, le=MOST_CHOICES)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: StopString | Annotated[list[StopString], Field(max_length=MOST_STOP_STRINGS)] | None = (
        None
    )
    stream: bool = False
    stream_options: StreamOptions | None = None
    return_token_ids: bool = False
    presence_penalty: Literal[0] | None = 0
    frequency_penalty: Literal[0] | None = 0
    user: str | None = None

    @classmethod
    def parse(cls, content: bytes) -> Self:
        """The request in a body.

        Raises:
            InvalidSettingError: names field, value and what is accepted.
        """
        try:
            return cls.model_validate_json(content)
        except ValidationError as error:
            raise _named(error) from None

    def stop_strings(self) -> tuple[str, ...]:
        """Strings that end a completion."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    def sampling(self, tokenizer: Tokenizer) -> Sampling:
        """How to sample; both end tokens of the tokenizer end a completion."""
        return Sampling(
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            stop_token_ids=(tokenizer.end_of_sentence_id, tokenizer.end_of_document_id),
            stop_strings=self.stop_strings(),
            top_logprobs=self.wanted_logprobs() or 0,
        )

    @abstractmethod
    def wanted_logprobs(self) -> int | None:
        """Alternatives per token; None if no log-probabilities are asked for."""

    def requests(self, prompts: Sequence[TokenIds], max_new_tokens: int) -> list[Request]:
        """`n` requests per prompt, each with a seed of its own.

        Raises:
            InvalidSettingError: more choices than one request may have.
        """
        count = len(prompts) * self.n
        if count > MOST_CHOICES:
            raise InvalidSettingError(
                field="n", value=self.n, accepted=f"prompts x n up to {MOST_CHOICES}"
            )
        first = secrets.randbits(62) if self.seed is None else self.seed
        return [
            Request(
                prompt_token_ids=prompts[number // self.n],
                max_new_tokens=max_new_tokens,
                seed=first + number,
            )
            for number in range(count)
        ]


class CompletionBody(CommonBody):
    """POST /v1/completions."""

    prompt: str | TokenIds | list[str] | list[TokenIds]
    max_tokens: int | None = Field(None, ge=1, le=2**31)
    logprobs: int | None = Field(None, ge=0, le=MOST_TOP_LOGPROBS)
    echo: Literal[False] | None = False
    best_of: Literal[1] | None = None

    def wanted_logprobs(self) -> int | None:
        """`logprobs`: 0 gives those of the chosen tokens only."""
        return self.logprobs

    def prompts(self, tokenizer: Tokenizer) -> list[TokenIds]:
        """Token ids of each prompt; text never becomes special tokens."""
        if isinstance(self.prompt, str):
            return [tokenizer.encode(self.prompt)]
        if all(isinstance(part, int) for part in self.prompt):
            return [[part for part in self.prompt if isinstance(part, int)]]
        return [
            tokenizer.encode(part) if isinstance(part, str) else part
            for part in self.prompt
            if not isinstance(part, int)
        ]


class TextPart(_Body):
    """A part of a message's content."""

    type: Literal["text"]
    text: str


class ChatMessage(_Body):
    """One turn."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]

    def to_message(self) -> Message:
        """In the one chat format of the project."""
        parts = self.content if isinstance(self.content, list) else None
        content = "".join(part.text for part in parts) if parts is not None else str(self.content)
        return Message(role="system" if self.role == "developer" else self.role, content=content)


class ChatBody(CommonBody):
    """POST /v1/chat/completions."""

    messages: list[ChatMessage] = Field(min_length=1, max_length=10_000)
    max_tokens: int | None = Field(None, ge=1, le=2**31)
    max_completion_tokens: int | None = Field(None, ge=1, le=2**31)
    logprobs: bool | None = False
    top_logprobs: int | None = Field(None, ge=0, le=MOST_TOP_LOGPROBS)

    def wanted_logprobs(self) -> int | None:
        """`top_logprobs`, where `logprobs` is true."""
        return (self.top_logprobs or 0) if self.logprobs else None

    def prompts(self, tokenizer: Tokenizer) -> list[TokenIds]:
        """The conversation, up to where the assistant begins."""
        messages = [message.to_message() for message in self.messages]
        return [prompt_token_ids(tokenizer, messages)]


def _named(error: ValidationError) -> InvalidSettingError:
    """The most telling complaint of pydantic as field, value, accepted."""
    complaints = error.errors(include_url=False)
    # where several types are accepted, the others' complaints say only that it is not theirs
    first = next((one for one in complaints if not one["type"].endswith("_type")), complaints[0])
    field = ".".join(str(part) for part in first["loc"] if not _is_branch(part)) or "body"
    value: Any = first["input"]
    shown = value if isinstance(value, int | float | bool | None) else str(value)
    if isinstance(shown, str) and len(shown) > _SHOWN_CHARACTERS:
        shown = shown[:_SHOWN_CHARACTERS] + "..."
    if first["type"] == "missing":
        return InvalidSettingError(field=field, value=None, accepted="a value: it is required")
    if first["type"] == "extra_forbidden":
        return InvalidSettingError(field=field, value=shown, accepted="no such field")
    return InvalidSettingError(field=field, value=shown, accepted=first["msg"])


def _is_branch(part: int | str) -> bool:
    """Pydantic names the branch of a union by its type."""
    return isinstance(part, str) and ("[" in part or part.endswith(("str", "int")))
