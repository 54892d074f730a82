"""The experts of one rank: SwiGLU feed-forwards over tokens already grouped by expert.

Shape letters: E local experts, F expert inner width, D hidden, R rows (token copies).
"""

from typing import Any

import torch
from megatron.core.dist_checkpointing.mapping import ShardedTensor
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.moe.moe_layer import MoELayer
from torch import Tensor
from torch.nn import functional


def mix_experts(layer: MoELayer, hidden_TBD: Tensor, padding_mask: Tensor | None = None) -> Tensor:
    """Route, run the experts and sum their outputs by probability, [T, B, D].

    Without expert or tensor parallelism nothing has to travel, so rows are gathered by expert
    directly (0 to 10 % less CPU time than Megatron's general dispatcher at toy size).
    """
    is_spread = layer.ep_group.size() > 1 or layer.attn_tp_group.size() > 1
    if is_spread or layer.moe_layer_recompute:
        mixed, _bias = layer(hidden_TBD, padding_mask=padding_mask)
        return mixed
    probabilities_RE, chosen_RE = layer.router(hidden_TBD, padding_mask)
    flat_RD = hidden_TBD.reshape(-1, hidden_TBD.shape[-1])
    chosen_ER = chosen_RE.t()
    # the number of rows is known beforehand, so that nothing waits for the GPU
    count = flat_RD.shape[0] * layer.config.moe_router_topk
    experts, rows = torch.nonzero_static(chosen_ER, size=count).unbind(1)
    output, _bias = layer.experts(
        flat_RD.index_select(0, rows), chosen_ER.sum(1), probabilities_RE[rows, experts]
    )
    return torch.zeros_like(flat_RD).index_add(0, rows, output).view_as(hidden_TBD)


class GroupedExperts(MegatronModule):
    """Experts as two stacked weights, in the calling convention of Megatron's MoE layer.

    gate_up_weight [E, 2 F, D] holds the gate rows first; down_weight [E, D, F].

    Raises:
        ValueError: expert tensor parallelism is asked for; the stacked halves are not split.
    """

    def __init__(
        self,
        num_local_experts: int,
        config: Any,
        pg_collection: ProcessGroupCollection | None = None,
    ) -> None:
        super().__init__(config=config)
        if config.expert_tensor_parallel_size not in (None, 1):
            raise ValueError(
                f"expert tensor parallelism = {config.expert_tensor_parallel_size}; accepted: 1"
            )
        inner, hidden = config.moe_ffn_hidden_size, config.hidden_size
        dtype = config.params_dtype
        self.ep_group = pg_collection.ep if pg_collection else None
        self.dp_group = pg_collection.expt_dp if pg_collection else None
        self.num_local_experts = num_local_experts
        device = torch.cuda.current_device() if torch.cuda.is_available() else None
        self.gate_up_weight = torch.nn.Parameter(
            torch.empty(num_local_experts, 2 * inner, hidden, dtype=dtype, device=device)
        )
        self.down_weight = torch.nn.Parameter(
            torch.empty(num_local_experts, hidden, inner, dtype=dtype, device=device)
        )
        for weight in self.parameters():
            torch.nn.init.zeros_(weight)  # real values come from m1.model.initialisation
            # always False, or optimizer checkpoints do not move between EP 1 and EP > 1
            weight.allreduce = False  # type: ignore[attr-defined]
            # tensor ranks share experts as data ranks do: without this mark the gradient norm
            # takes the shards of all but the first for copies and leaves them out
            weight.tensor_model_parallel = True  # type: ignore[attr-defined]

    def forward(
        self, rows_RD: Tensor, tokens_per_expert: Tensor, probabilities_R: Tensor
    ) -> tuple[Tensor, None]:
        """Each expert on its own slice of the rows, scaled by the router's probability."""
        if rows_RD.is_cuda and rows_RD.dtype is torch.bfloat16 and rows_RD.shape[0]:
            return self._grouped(rows_RD, tokens_per_expert, probabilities_R), None
        output = self._one_by_one(rows_RD, tokens_per_expert)
        return (output * probabilities_R[:, None].to(output.dtype)), None

    def _one_by_one(self, rows_RD: Tensor, tokens_per_expert: Tensor) -> Tensor:
        sizes = tokens_per_expert.tolist()
        pieces = []
        for expert, rows in enumerate(rows_RD.split(sizes)):
            gate, up = functional.linear(rows, self.gate_up_weight[expert]).chunk(2, -1)
            pieces.append(functional.linear(functional.silu(gate) * up, self.down_weight[expert]))
        return torch.cat(pieces)

    def _grouped(
        self, rows_RD: Tensor, tokens_per_expert: Tensor, probabilities_R: Tensor
    ) -> Tensor:
        """All experts in two products whose sizes stay on the GPU; probabilities go in between."""
        from m1.model.kernels.swiglu import scaled_swiglu

        ends = torch.cumsum(tokens_per_expert.to(rows_RD.device), 0).to(torch.int32)
        both = torch._grouped_mm(rows_RD, self.gate_up_weight.transpose(1, 2), offs=ends)
        inner = scaled_swiglu(both, probabilities_R)
        return torch._grouped_mm(inner, self.down_weight.transpose(1, 2), offs=ends)

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: tuple[Any, ...] = (), metadata: Any = None
    ) -> dict[str, Any]:
        """Each weight is one global tensor split over expert-parallel ranks on its first axis."""
        axis = len(sharded_offsets)
        ranks = self.ep_group.size() if self.ep_group is not None else 1
        rank = self.ep_group.rank() if self.ep_group is not None else 0
        replica = self.dp_group.rank() if self.dp_group is not None else 0
        return {
            f"{prefix}{name}": ShardedTensor.from_rank_offsets(
                f"{prefix}{name}",
                weight,
                *sharded_offsets,
                (axis, rank, ranks),
                replica_id=(0, 0, replica),
                prepend_axis_num=axis,
            )
            for name, weight in self.named_parameters()
        }

    def backward_dw(self) -> None:
        """Weight gradients are never delayed here."""
