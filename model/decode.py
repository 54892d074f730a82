"""Generates completions for many requests at once, from the trainer's own weights.

Not here: continuous batching (`decode_engine`), the network (`decode_network`), the choice of a
token (`sampling`).
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypedDict, Unpack

import torch
from torch import Tensor

from m1.infra.errors import InvalidSettingError, PromptTooLongError
from m1.model.config import ModelConfig
from m1.model.decode_engine import (
    PREFILL_CHUNK_TOKENS,
    Completion,
    Engine,
    FinishReason,
    Request,
)
from m1.model.decode_network import DecodeNetwork
from m1.model.sampling import Sampling
from m1.model.stop_strings import TextOf

__all__ = ["Completion", "Decoder", "Engine", "FinishReason", "Request", "Sampling"]


class DecoderOptions(TypedDict, total=False):
    """What a decoder may be told besides its weights.

    rotary_base: by default that of the config; the extension stages raise it.
    prefill_chunk_tokens: prompt tokens of one row per pass.
    window_tokens: prompt and completion together are no longer; by default nothing limits them.
    text_of: text of token ids, needed for stop strings.
    """

    rotary_base: float
    prefill_chunk_tokens: int
    window_tokens: int
    text_of: TextOf


class Decoder:
    """Completes requests with a model that lives in this process, whole, on one rank.

    Holds references to the weights, never copies: each `generate` uses them as they are when it
    starts. Greedy choices and seeds make a request independent of its batch; its logits agree
    with those of any other batching to fp32 rounding.

    Args:
        model: a GPTModel of `m1.model.spec` or its weights by name.
        config: sizes of the model.
        options: see `DecoderOptions`.
    """

    def __init__(
        self,
        model: torch.nn.Module | Mapping[str, Tensor],
        config: ModelConfig,
        **options: Unpack[DecoderOptions],
    ) -> None:
        named: Any = (
            model.named_parameters() if isinstance(model, torch.nn.Module) else model.items()
        )
        # wrappers of the trainer (data parallel, mixed precision) prefix `module.`
        self.weights = {re.sub(r"^(module\.)+", "", name): tensor for name, tensor in named}
        self.config = config
        self.rotary_base = options.get("rotary_base", config.rotary_base)
        self.prefill_chunk_tokens = options.get("prefill_chunk_tokens", PREFILL_CHUNK_TOKENS)
        self.window_tokens = options.get("window_tokens")
        self.text_of = options.get("text_of")
        for field in ("prefill_chunk_tokens", "window_tokens"):
            value = getattr(self, field)
            if value is not None and value < 1:
                raise InvalidSettingError(field=field, value=value, accepted=">= 1")

    def engine(self, *, max_batch: int) -> Engine:
        """An engine over the weights as they are now; requests go through `checked` first.

        Raises:
            ValueError: the weights are not those of a whole model.
        """
        if max_batch < 1:
            raise InvalidSettingError(field="max_batch", value=max_batch, accepted=">= 1")
        network = DecodeNetwork(self.weights, self.config, rotary_base=self.rotary_base)
        return Engine(
            network,
            max_batch=max_batch,
            prefill_chunk_tokens=self.prefill_chunk_tokens,
            text_of=self.text_of,
        )

    def generate(
        self, requests: Sequence[Request], sampling: Sampling, *, max_batch: int = 256
    ) -> list[Completion]:
        """Completions in the order of the requests.

        Raises:
            InvalidSettingError: a prompt is empty or holds an unknown token, or a number is out
                of its range.
            PromptTooLongError: a prompt leaves no room for a token in the window.
            ValueError: the weights are not those of a whole model.
        """
        checked = [self.checked(request, sampling) for request in requests]
        if not checked:
            return []
        engine = self.engine(max_batch=min(max_batch, len(checked)))
        tickets = [engine.submit(request, sampling) for request in checked]
        finished: dict[int, Completion] = {}
        while not engine.is_idle:
            finished.update(engine.step())
        return [finished[ticket] for ticket in tickets]

    def checked(self, request: Request, sampling: Sampling) -> Request:
        """The request, with its length cut to what the window leaves; raises as `generate`."""
        ids = request.prompt_token_ids
        last = self.config.vocabulary_size - 1
        if len(ids) == 0:
            raise InvalidSettingError(field="prompt", value="no tokens", accepted="at least one")
        if min(ids) < 0 or max(ids) > last:
            raise InvalidSettingError(
                field="prompt_token_ids", value=(min(ids), max(ids)), accepted=f"0 to {last}"
            )
        if request.max_new_tokens < 1:
            raise InvalidSettingError(
                field="max_new_tokens", value=request.max_new_tokens, accepted=">= 1"
            )
        if sampling.stop_strings and self.text_of is None:
            raise InvalidSettingError(
                field="stop_strings", value=sampling.stop_strings, accepted="none: no tokenizer"
            )
        if self.window_tokens is None:
            return request
        room = self.window_tokens - len(ids)
        if room < 1:
            raise PromptTooLongError(prompt_tokens=len(ids), window_tokens=self.window_tokens)
        return replace(request, max_new_tokens=min(request.max_new_tokens, room))
