"""How many parameters the model has, and how many of them one rank holds. Exact counts."""

from dataclasses import dataclass

from m1.model.config import ModelConfig, ParallelLayout


@dataclass(frozen=True, slots=True, kw_only=True)
class ParameterCounts:
    """Parameters by part, summed over layers.

    `active` counts what one token uses as MiniMax counts it: chosen experts, attention, routers
    and norms, without embedding and head (facts sheet section 1.2).
    """

    lightning: int
    softmax: int
    routers: int
    experts: int
    active_experts: int
    norms: int
    embedding: int
    head: int

    @property
    def dense(self) -> int:
        """All but experts, embedding and head."""
        return self.lightning + self.softmax + self.routers + self.norms

    @property
    def total(self) -> int:
        """Every parameter."""
        return self.dense + self.experts + self.embedding + self.head

    @property
    def active(self) -> int:
        """Parameters that one token uses, without embedding and head."""
        return self.dense + self.active_experts


def count_parameters(model: ModelConfig) -> ParameterCounts:
    """Exact counts; 456,089,655,296 in total and 45,944,920,064 active for the defaults."""
    softmax_layers = count_layers(model, range(model.num_layers), "softmax")
    lightning_layers = model.num_layers - softmax_layers
    expert = expert_parameters(model)
    return ParameterCounts(
        lightning=lightning_layers * attention_parameters(model, "lightning"),
        softmax=softmax_layers * attention_parameters(model, "softmax"),
        routers=model.num_layers * model.num_experts * model.hidden_size,
        experts=model.num_layers * model.num_experts * expert,
        active_experts=model.num_layers * model.experts_per_token * expert,
        norms=(2 * model.num_layers + 1) * model.hidden_size,
        embedding=model.vocabulary_size * model.hidden_size,
        head=model.vocabulary_size * model.hidden_size,
    )


def attention_parameters(model: ModelConfig, kind: str) -> int:
    """Of one layer: q, k, v, gate, output and the inner norm; or q, k, v and output."""
    if kind == "lightning":
        return (5 * model.hidden_size + 1) * model.attention_width
    return 2 * model.hidden_size * (model.attention_width + key_value_width(model))


def expert_parameters(model: ModelConfig) -> int:
    """Of one expert: gate, up and down."""
    return 3 * model.hidden_size * model.expert_hidden_size


def key_value_width(model: ModelConfig) -> int:
    """Width of all key heads of a softmax layer together."""
    return model.num_key_value_heads * model.head_width


def count_layers(model: ModelConfig, layers: range, kind: str) -> int:
    """How many of these 0-based layers are `lightning` or `softmax`."""
    return sum(model.layer_kind(layer) == kind for layer in layers)


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


def rank_layers(model: ModelConfig, layout: ParallelLayout, pipeline_rank: int) -> range:
    """The 0-based layers of one pipeline rank."""
    count = model.num_layers // layout.pipeline
    return range(pipeline_rank * count, (pipeline_rank + 1) * count)


def rank_parameters(
    model: ModelConfig, layout: ParallelLayout, *, pipeline_rank: int
) -> RankParameters:
    """Exact count for a rank of a layout that divides the model (`m1.model.cost.layouts`)."""
    layers = rank_layers(model, layout, pipeline_rank)
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
