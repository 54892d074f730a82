"""What one rank of a layout holds: its layers and its parameters, counted exactly."""

from dataclasses import dataclass
from functools import cache

from m1.model.config import ModelConfig, ParallelLayout
from m1.model.cost.parameters import attention_parameters, expert_parameters
from m1.model.pipeline_split import layers_per_rank


@dataclass(frozen=True, slots=True, kw_only=True)
class RankParameters:
    """What one rank holds.

    Args:
        dense: attention, norms, routers, embedding and head: one copy per data and context rank.
        experts: of the rank's own experts: copied by fewer ranks.
        replicated: the part of `dense` that every tensor rank holds whole (norms and routers).
    """

    dense: int
    experts: int
    replicated: int


def rank_layers(
    model: ModelConfig, layout: ParallelLayout, *, pipeline_rank: int, window_tokens: int
) -> range:
    """The 0-based layers of one pipeline rank, as training splits them."""
    counts = _layers_per_rank(model, layout.pipeline, window_tokens)
    first = sum(counts[:pipeline_rank])
    return range(first, first + counts[pipeline_rank])


@cache
def _layers_per_rank(model: ModelConfig, ranks: int, window_tokens: int) -> tuple[int, ...]:
    return tuple(layers_per_rank(model, ranks, window_tokens=window_tokens))


def rank_parameters(
    model: ModelConfig, layout: ParallelLayout, *, pipeline_rank: int, window_tokens: int
) -> RankParameters:
    """Exact count for a rank of a layout that divides the model (`m1.model.cost.layouts`)."""
    layers = rank_layers(model, layout, pipeline_rank=pipeline_rank, window_tokens=window_tokens)
    split = sum(attention_parameters(model, model.layer_kind(layer)) for layer in layers)
    replicated = len(layers) * (2 + model.num_experts) * model.hidden_size
    if pipeline_rank == 0:
        split += model.vocabulary_size * model.hidden_size
    if pipeline_rank == layout.pipeline - 1:
        split += model.vocabulary_size * model.hidden_size
        replicated += model.hidden_size
    own_experts = model.num_experts // layout.expert
    return RankParameters(
        dense=split // layout.tensor + replicated,
        experts=len(layers) * own_experts * expert_parameters(model),
        replicated=replicated,
    )
