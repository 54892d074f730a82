"""FLOPs per token against length: decoding, prefill, training.

Counts matrix products only (a multiply-add is 2) and only those that causality asks for.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from m1.model.config import ModelConfig
from m1.model.cost.parameters import count_layers, count_parameters

LIGHTNING_CHUNK_TOKENS = 64  # chunk of the training kernel: work inside a chunk is quadratic
BACKWARD_FACTOR = 3  # forward plus a backward of twice its work
TABLE_TOKENS = (1024, 8192, 32_768, 65_536, 131_072, 524_288, 1_048_576)


@dataclass(frozen=True, slots=True, kw_only=True)
class FlopsAtLength:
    """FLOPs per token: at the end of `tokens` when decoding, the mean over them otherwise."""

    tokens: int
    training: float
    prefill: float
    decode: float


def decode_flops_per_token(model: ModelConfig, *, context_tokens: float) -> float:
    """FLOPs to produce one token that attends to `context_tokens` tokens.

    Twice the active parameters and the head, 4 H W per attended token and softmax layer, and
    4 H W^2 per lightning layer (add to the state, read it) whatever the length.
    """
    counts = count_parameters(model)
    softmax_layers = count_layers(model, range(model.num_layers), "softmax")
    lightning_layers = model.num_layers - softmax_layers
    products = 2.0 * (counts.active - counts.norms + counts.head)
    attention = 4.0 * softmax_layers * model.attention_width * context_tokens
    recurrence = 4.0 * lightning_layers * model.attention_width * model.head_width
    return products + attention + recurrence


def prefill_flops_per_token(model: ModelConfig, *, window_tokens: int) -> float:
    """Mean FLOPs per token of a forward over a whole window: on average half of it is attended.

    Lightning layers pay the products inside a chunk on top of the recurrence.
    """
    lightning_layers = count_layers(model, range(model.num_layers), "lightning")
    chunk = min(LIGHTNING_CHUNK_TOKENS, window_tokens)
    inside = 4.0 * lightning_layers * model.attention_width * chunk
    mean_context = (window_tokens + 1) / 2
    return decode_flops_per_token(model, context_tokens=mean_context) + inside


def training_flops_per_token(model: ModelConfig, *, window_tokens: int) -> float:
    """Mean FLOPs per token of forward and backward; recomputation is not counted."""
    return BACKWARD_FACTOR * prefill_flops_per_token(model, window_tokens=window_tokens)


def flops_table(
    model: ModelConfig, lengths: Sequence[int] = TABLE_TOKENS
) -> tuple[FlopsAtLength, ...]:
    """Training, prefill and decode at each length."""
    return tuple(
        FlopsAtLength(
            tokens=tokens,
            training=training_flops_per_token(model, window_tokens=tokens),
            prefill=prefill_flops_per_token(model, window_tokens=tokens),
            decode=decode_flops_per_token(model, context_tokens=tokens),
        )
        for tokens in lengths
    )
