"""How many parameters the model has, and how many of them one rank holds. Exact counts."""

from dataclasses import dataclass

from m1.model.config import ModelConfig


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
