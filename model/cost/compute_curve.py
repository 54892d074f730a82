"""The compute curve of the M1 paper: FLOPs of a whole generation, M1 against DeepSeek-R1.

Figure 1 (right) of the M1 report does not say how it counts. Two countings are here:

`causal`   every matrix product that causality asks for; what `m1.model.cost.flops` counts too.
`figure`   scores over the attended half of the window, the sum over values over all of it.
           Our inference, not stated by MiniMax: it gives the quadratic terms that the figure's
           R1 curve has (61 x 128 x (192 + 2 x 128) = 3.498e6 per squared token, read: 3.50e6).

Source of R1's sizes: config.json of DeepSeek-R1 (those of DeepSeek-V3); MLA: DeepSeek-V3 report,
section 2.1. Keys and values are expanded per head, not absorbed into the query: absorption is an
inference trick that trades products for bytes and would cost 3.4 times the attention FLOPs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from m1.model.config import ModelConfig
from m1.model.cost.flops import decode_flops_per_token
from m1.model.cost.parameters import count_layers

Accounting = Literal["causal", "figure"]
CURVE_TOKENS = tuple(1024 * thousands for thousands in (16, 32, 48, 64, 80, 96, 112, 128))
# Of every attended pair, which share is paid: (scores, sum over values).
_SHARES: dict[Accounting, tuple[float, float]] = {"causal": (0.5, 0.5), "figure": (0.5, 1.0)}


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentAttentionModel:
    """A mixture of experts with multi-head latent attention; the defaults are DeepSeek-R1's."""

    num_layers: int = 61
    dense_layers: int = 3
    hidden_size: int = 7168
    num_heads: int = 128
    query_rank: int = 1536
    key_value_rank: int = 512
    plain_head_width: int = 128
    rotary_head_width: int = 64
    value_head_width: int = 128
    num_experts: int = 256
    experts_per_token: int = 8
    shared_experts: int = 1
    expert_hidden_size: int = 2048
    dense_hidden_size: int = 18432
    vocabulary_size: int = 129280

    @property
    def query_head_width(self) -> int:
        """Elements of a query or key head."""
        return self.plain_head_width + self.rotary_head_width

    @property
    def attention_parameters(self) -> int:
        """Projections of one layer; norms left out."""
        queries = self.query_rank * (self.hidden_size + self.num_heads * self.query_head_width)
        latent = self.hidden_size * (self.key_value_rank + self.rotary_head_width)
        heads = self.plain_head_width + self.value_head_width
        expanded = self.key_value_rank * self.num_heads * heads
        return queries + latent + expanded + self._output_parameters

    @property
    def _output_parameters(self) -> int:
        return self.num_heads * self.value_head_width * self.hidden_size

    @property
    def active(self) -> int:
        """Parameters of the matrix products of one token, without embedding and head."""
        return self._with_experts(self.experts_per_token)

    @property
    def total(self) -> int:
        """Parameters with embedding and head; norms and the prediction module left out."""
        ends = 2 * self.vocabulary_size * self.hidden_size
        return self._with_experts(self.num_experts) + ends

    def _with_experts(self, routed: int) -> int:
        expert = 3 * self.hidden_size * self.expert_hidden_size
        sparse = (routed + self.shared_experts) * expert + self.num_experts * self.hidden_size
        dense = 3 * self.hidden_size * self.dense_hidden_size
        return (
            self.num_layers * self.attention_parameters
            + (self.num_layers - self.dense_layers) * sparse
            + self.dense_layers * dense
        )


DEEPSEEK_R1 = LatentAttentionModel()


def latent_generation_flops(
    model: LatentAttentionModel, *, tokens: int, accounting: Accounting = "causal"
) -> float:
    """FLOPs to generate `tokens` tokens from an empty prompt."""
    scores, values = _SHARES[accounting]
    head = model.vocabulary_size * model.hidden_size
    width = scores * model.query_head_width + values * model.value_head_width
    attention = 2.0 * model.num_layers * model.num_heads * width
    return 2.0 * (model.active + head) * tokens + attention * tokens**2


def hybrid_generation_flops(
    model: ModelConfig, *, tokens: int, accounting: Accounting = "causal"
) -> float:
    """FLOPs to generate `tokens` tokens from an empty prompt."""
    share = sum(_SHARES[accounting]) / 2
    softmax_layers = count_layers(model, range(model.num_layers), "softmax")
    attention = 4.0 * softmax_layers * model.attention_width * share
    linear = decode_flops_per_token(model, context_tokens=0)
    return linear * tokens + attention * float(tokens) ** 2


@dataclass(frozen=True, slots=True, kw_only=True)
class CurvePoint:
    """FLOPs of one generation of `tokens` tokens."""

    tokens: int
    model: float
    deepseek_r1: float

    @property
    def ratio(self) -> float:
        """Ours over R1's."""
        return self.model / self.deepseek_r1


def compute_curve(
    model: ModelConfig,
    *,
    accounting: Accounting = "causal",
    lengths: Sequence[int] = CURVE_TOKENS,
) -> tuple[CurvePoint, ...]:
    """Both models at each generation length, in tokens."""
    return tuple(
        CurvePoint(
            tokens=tokens,
            model=hybrid_generation_flops(model, tokens=tokens, accounting=accounting),
            deepseek_r1=latent_generation_flops(DEEPSEEK_R1, tokens=tokens, accounting=accounting),
        )
        for tokens in lengths
    )
