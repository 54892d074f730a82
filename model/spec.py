"""Builds the hybrid model from megatron-core: configuration, per-layer specs, GPTModel.

Documents: what Megatron calls `attention_mask` carries the document ids [B, T] of a row (or None
when each row is one document); both layer kinds keep tokens within their document. Under context
parallelism tokens and positions are this rank's part of the window, document ids the whole of it.
"""

import warnings
from dataclasses import dataclass
from typing import Any

import m1.model.compat  # noqa: F401  (patches megatron-core before it is imported)

# isort: split

import torch
from megatron.core.models.gpt import GPTModel
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.attention import SelfAttention, SelfAttentionSubmodules
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.moe.moe_layer import MoELayer, MoESubmodules
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import (
    TransformerLayerSubmodules,
    get_transformer_layer_offset,
)
from torch import Tensor

from m1.model.config import ModelConfig, ParallelLayout
from m1.model.experts import GroupedExperts
from m1.model.forward import forward_window
from m1.model.initialisation import initialise
from m1.model.layout_check import check_layout
from m1.model.lightning_attention import LightningAttention
from m1.model.lm_head import Float32Head, target_logprobs
from m1.model.pipeline_split import layers_per_rank
from m1.model.residual import HybridLayer, RootMeanSquareNorm
from m1.model.softmax_attention import DocumentAttention


@dataclass
class HybridConfig(TransformerConfig):
    """Megatron's configuration plus the hybrid model's own."""

    hybrid: ModelConfig = None  # type: ignore[assignment]


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildOptions:
    """What a stage may choose about the model besides its shape."""

    rotary_base: float = 10_000.0
    window_tokens: int = 8192
    parameter_type: torch.dtype = torch.float32
    router_auxiliary_coefficient: float = 0.0
    seed: int = 0


def megatron_config(
    config: ModelConfig, layout: ParallelLayout, options: BuildOptions
) -> HybridConfig:
    """The TransformerConfig that says what our specs need.

    Raises:
        InvalidSettingError: the ranks cannot share this model evenly.
    """
    check_layout(config, layout)
    return HybridConfig(
        hybrid=config,
        num_layers=config.num_layers,
        hidden_size=config.hidden_size,
        num_attention_heads=config.num_heads,
        num_query_groups=config.num_key_value_heads,
        kv_channels=config.head_width,
        ffn_hidden_size=config.expert_hidden_size,
        moe_ffn_hidden_size=config.expert_hidden_size,
        num_moe_experts=config.num_experts,
        moe_router_topk=config.experts_per_token,
        moe_router_pre_softmax=False,  # top-k, then softmax: equal to softmax, top-k, renormalise
        moe_router_dtype="fp32",
        moe_router_load_balancing_type="aux_loss",
        # Each tensor and context rank weighs the loss by its own tokens only (megatron-core 0.16.1)
        moe_aux_loss_coeff=options.router_auxiliary_coefficient * layout.tensor * layout.context,
        moe_token_dispatcher_type="alltoall",  # noqa: S106  (not a password)
        calculate_per_token_loss=True,  # the router reads it when it is built, not later
        add_bias_linear=False,
        gated_linear_unit=True,
        activation_func=torch.nn.functional.silu,
        normalization="RMSNorm",
        layernorm_epsilon=config.norm_epsilon,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        bias_dropout_fusion=False,
        apply_rope_fusion=False,
        gradient_accumulation_fusion=False,
        masked_softmax_fusion=False,
        use_cpu_initialization=True,
        perform_initialization=False,
        hetereogenous_dist_checkpoint=True,
        params_dtype=options.parameter_type,
        bf16=options.parameter_type is torch.bfloat16,
        pipeline_dtype=options.parameter_type,
        tensor_model_parallel_size=layout.tensor,
        sequence_parallel=layout.tensor > 1,
        pipeline_model_parallel_size=layout.pipeline,
        pipeline_model_parallel_layout=_pipeline_layout(config, layout, options),
        context_parallel_size=layout.context,
        expert_model_parallel_size=layout.expert,
        expert_tensor_parallel_size=1,
        **_recompute_options(layout),
    )


def _pipeline_layout(
    config: ModelConfig, layout: ParallelLayout, options: BuildOptions
) -> list[list[str]] | None:
    """Megatron's list of what each pipeline rank holds."""
    if layout.pipeline == 1:
        return None
    counts = layers_per_rank(config, layout.pipeline, window_tokens=options.window_tokens)
    stages = [["decoder"] * count for count in counts]
    stages[0].insert(0, "embedding")
    stages[-1].append("loss")
    return stages


def _recompute_options(layout: ParallelLayout) -> dict[str, Any]:
    """Megatron's names for `layout.recompute`."""
    if layout.recompute == "none":
        return {}
    if layout.recompute == "selective":
        return {"recompute_granularity": "selective", "recompute_modules": ["moe"]}
    return {
        "recompute_granularity": "full",
        "recompute_method": "uniform",
        "recompute_num_layers": 1,
    }


def _attention_spec(kind: str) -> ModuleSpec:
    if kind == "lightning":
        return ModuleSpec(module=LightningAttention)
    return ModuleSpec(
        module=SelfAttention,
        params={"attn_mask_type": AttnMaskType.causal},
        submodules=SelfAttentionSubmodules(
            linear_qkv=ColumnParallelLinear,
            core_attention=DocumentAttention,
            linear_proj=RowParallelLinear,
        ),
    )


def layer_spec(config: ModelConfig, layer: int) -> ModuleSpec:
    """Spec of the 0-based global layer."""
    return ModuleSpec(
        module=HybridLayer,
        submodules=TransformerLayerSubmodules(
            input_layernorm=RootMeanSquareNorm,
            self_attention=_attention_spec(config.layer_kind(layer)),
            pre_mlp_layernorm=RootMeanSquareNorm,
            mlp=ModuleSpec(
                module=MoELayer,
                submodules=MoESubmodules(experts=ModuleSpec(GroupedExperts)),
            ),
        ),
    )


def block_spec(config: HybridConfig) -> TransformerBlockSubmodules:
    """Specs of the layers of this pipeline rank."""
    from megatron.core.transformer.transformer_block import get_num_layers_to_build

    first = get_transformer_layer_offset(config)
    count = get_num_layers_to_build(config)
    return TransformerBlockSubmodules(
        layer_specs=[layer_spec(config.hybrid, first + index) for index in range(count)],
        layer_norm=RootMeanSquareNorm,
    )


class HybridModel(GPTModel):  # type: ignore[misc]
    """GPTModel with an fp32 LM head."""

    def __init__(self, config: HybridConfig, **kwargs: Any) -> None:
        super().__init__(config=config, **kwargs)
        if self.post_process:
            self.output_layer = Float32Head(
                config.hidden_size,
                self.vocab_size,
                config=config,
                init_method=config.init_method,
                bias=False,
                skip_bias_add=False,
                gather_output=not self.parallel_output,
                tp_group=self.pg_collection.tp,
            )

    def _postprocess(
        self, hidden_states: Tensor, *, labels: Tensor | None = None, **kwargs: Any
    ) -> Tensor:
        """As GPTModel's; on a GPU the loss comes from chunks of logits instead of all of them."""
        if labels is None or not self.post_process or not hidden_states.is_cuda:
            return super()._postprocess(hidden_states, labels=labels, **kwargs)
        return -self.output_layer.logprobs(hidden_states, labels.t()).t()

    def compute_language_model_loss(self, labels: Tensor, logits: Tensor) -> Tensor:
        """Negative log-likelihood of `labels` [B, T] under fp32 logits [T, B, V], as [B, T]."""
        return -target_logprobs(logits, labels.t(), tensor_ranks=self.pg_collection.tp.size()).t()


def build_model(
    config: ModelConfig,
    layout: ParallelLayout,
    options: BuildOptions,
    *,
    parallel_output: bool = True,
) -> HybridModel:
    """The model part of this rank, with starting weights. Process groups must exist."""
    from megatron.core import parallel_state

    megatron = megatron_config(config, layout, options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # megatron warns about what it cannot find (TE, Apex)
        model = HybridModel(
            config=megatron,
            transformer_layer_spec=block_spec(megatron),
            vocab_size=config.vocabulary_size,
            max_sequence_length=options.window_tokens,
            pre_process=parallel_state.is_pipeline_first_stage(),
            post_process=parallel_state.is_pipeline_last_stage(),
            parallel_output=parallel_output,
            share_embeddings_and_output_weights=False,
            position_embedding_type="rope",
            rotary_percent=config.rotary_width / config.head_width,
            rotary_base=options.rotary_base,
            pg_collection=ProcessGroupCollection.use_mpu_process_groups(),
        )
    initialise(model, config, seed=options.seed)
    return model.cuda() if torch.cuda.is_available() else model


def forward_logits(model: Any, tokens_BT: Tensor, document_ids_BT: Tensor | None = None) -> Tensor:
    """Fp32 logits [B, T, V], on every rank of the layout."""
    return forward_window(model, tokens_BT, document_ids_BT)


def forward_nats(model: Any, tokens_BT1: Tensor, document_ids_BT: Tensor | None = None) -> Tensor:
    """Negative log-likelihood [B, T] of each next token, given windows of T + 1 tokens."""
    inputs, targets = tokens_BT1[:, :-1], tokens_BT1[:, 1:]
    return forward_window(model, inputs, document_ids_BT, targets)
