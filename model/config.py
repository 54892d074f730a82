"""The shape of the hybrid model and how it is spread over ranks. Plain numbers: imports no torch.

Source of the fields: config.json of MiniMax-M1 (released configuration), named by meaning.
"""

from typing import Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator

LAYER_KINDS = ("lightning", "softmax")
Recompute = Literal["none", "selective", "full"]
LARGEST_CONTEXT = 1024
LARGEST_NODES = 100_000
RECOMPUTE_CHOICES: tuple[Recompute, ...] = get_args(Recompute)


class ModelConfig(BaseModel):
    """Sizes and constants of one hybrid model."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_layers: int = Field(80, ge=1, le=1024, description="Transformer layers, both kinds.")
    softmax_every: int = Field(
        8, ge=1, le=1024, description="Every n-th layer is softmax attention, the others lightning."
    )
    hidden_size: int = Field(6144, ge=8, le=65536, description="Width of the residual stream.")
    num_heads: int = Field(64, ge=1, le=1024, description="Attention heads of both layer kinds.")
    head_width: int = Field(128, ge=4, le=512, description="Elements per head.")
    num_key_value_heads: int = Field(8, ge=1, le=1024, description="KV heads of softmax layers.")
    num_experts: int = Field(32, ge=1, le=1024, description="Experts per layer.")
    experts_per_token: int = Field(2, ge=1, le=64, description="Experts each token is sent to.")
    expert_hidden_size: int = Field(9216, ge=4, le=131072, description="Inner width of an expert.")
    vocabulary_size: int = Field(200064, ge=64, le=1_000_000, description="Tokenizer entries.")
    rotary_width: int = Field(
        64, ge=2, le=512, description="Leading elements of a softmax head that are rotated."
    )
    rotary_base: float = Field(
        10_000.0,
        ge=1.0,
        le=1e12,
        description="Rotary base before extension (01 report, section 2).",
    )
    norm_epsilon: float = Field(1e-5, gt=0, le=1e-2, description="Epsilon of the layer norms.")
    lightning_norm_epsilon: float = Field(
        1e-6, gt=0, le=1e-2, description="Epsilon of the norm inside a lightning layer."
    )
    residual_alpha: float | None = Field(
        None, gt=0, le=100, description="DeepNorm factor; by default (2 x layers)^(1/4)."
    )
    initialisation: Literal["deepnorm", "normal"] = Field(
        "deepnorm", description="Xavier with DeepNorm gains (01 report, section 4.2), or normal."
    )
    initial_std: float = Field(
        0.02, gt=0, le=1.0, description="Standard deviation of embeddings, and of all if normal."
    )

    @model_validator(mode="after")
    def _sizes_agree(self) -> Self:
        if self.num_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_heads = {self.num_heads} must be a multiple of "
                f"num_key_value_heads = {self.num_key_value_heads}"
            )
        if self.rotary_width > self.head_width or self.rotary_width % 2:
            raise ValueError(
                f"rotary_width = {self.rotary_width} must be even and at most "
                f"head_width = {self.head_width}"
            )
        if self.experts_per_token > self.num_experts:
            raise ValueError(
                f"experts_per_token = {self.experts_per_token} exceeds "
                f"num_experts = {self.num_experts}"
            )
        return self

    @property
    def alpha(self) -> float:
        """Residual factor of DeepNorm: (2 N)^(1/4) unless set (M1 config: 3.5565588200778455)."""
        return self.residual_alpha or (2.0 * self.num_layers) ** 0.25

    @property
    def deepnorm_gain(self) -> float:
        """Initialisation gain of DeepNorm, (8 N)^(-1/4); not a factor of the forward pass."""
        return float((8.0 * self.num_layers) ** -0.25)

    @property
    def attention_width(self) -> int:
        """Width of all heads together; differs from the hidden size in M1."""
        return self.num_heads * self.head_width

    def layer_kind(self, layer: int) -> str:
        """`lightning` or `softmax` for the 0-based global layer index."""
        return "softmax" if (layer + 1) % self.softmax_every == 0 else "lightning"


class ParallelLayout(BaseModel):
    """How one job is spread over processes. Never part of a stage's identity."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    nodes: int = Field(1, ge=1, le=LARGEST_NODES, description="Machines.")
    processes_per_node: int = Field(1, ge=1, le=64, description="Ranks per machine.")
    tensor: int = Field(1, ge=1, le=64, description="Tensor-parallel ranks.")
    pipeline: int = Field(1, ge=1, le=256, description="Pipeline-parallel ranks.")
    context: int = Field(1, ge=1, le=LARGEST_CONTEXT, description="Context-parallel ranks.")
    expert: int = Field(1, ge=1, le=1024, description="Expert-parallel ranks.")
    recompute: Recompute = Field(
        "none",
        description="Forward work done again in backward to save memory: none, the experts "
        "(selective) or whole layers (full).",
    )

    @model_validator(mode="after")
    def _ranks_divide(self) -> Self:
        inner = self.tensor * self.pipeline * self.context
        if self.world_size % inner:
            raise ValueError(
                f"{self.world_size} ranks cannot be split into tensor {self.tensor} x "
                f"pipeline {self.pipeline} x context {self.context}"
            )
        return self

    @property
    def world_size(self) -> int:
        """Ranks in the job."""
        return self.nodes * self.processes_per_node

    @property
    def data(self) -> int:
        """Data-parallel ranks."""
        return self.world_size // (self.tensor * self.pipeline * self.context)
