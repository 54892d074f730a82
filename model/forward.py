"""One forward pass under any layout: every rank gets the answer for the whole window.

Training goes through Megatron's schedules; this is for measuring, without gradients in mind.

Shape letters: B windows, T tokens.
"""

from typing import Any

import m1.model.compat  # noqa: F401  (patches megatron-core before it is imported)

# isort: split

import torch
from megatron.core import parallel_state
from megatron.core.pipeline_parallel import get_forward_backward_func
from torch import Tensor

from m1.model.context_parallel import gather_window, own_share
from m1.model.layout_check import window_unit
from m1.model.spec import HybridModel


def forward_nats(
    model: HybridModel, tokens_BT1: Tensor, document_ids_BT: Tensor | None = None
) -> Tensor:
    """Negative log-likelihood [B, T] of each next token, given windows of T + 1 tokens.

    All tensor, pipeline and context ranks of a data-parallel rank call it with the same windows.
    """
    config = model.config
    tensor, context = config.tensor_model_parallel_size, config.context_parallel_size
    whole = {"tokens_BT": tokens_BT1[:, :-1], "targets_BT": tokens_BT1[:, 1:]}
    if document_ids_BT is not None:
        whole["document_ids_BT"] = document_ids_BT
    share = own_share(
        whole,
        rank=parallel_state.get_context_parallel_rank(),
        ranks=context,
        unit_tokens=window_unit(tensor=tensor, context=context),
    )
    pipelined = config.pipeline_model_parallel_size > 1
    nats = _through_the_pipeline(model, share) if pipelined else _run(model, share)
    if context > 1:
        nats = gather_window(nats.t(), parallel_state.get_context_parallel_group()).t()
    return nats[:, : tokens_BT1.shape[1] - 1]


def _run(model: Any, share: dict[str, Tensor]) -> Tensor:
    inputs = share["tokens_BT"]
    positions = torch.arange(inputs.shape[1], device=inputs.device).expand_as(inputs)
    output: Tensor = model(
        inputs, positions, share.get("document_ids_BT"), labels=share["targets_BT"]
    )
    return output


def _through_the_pipeline(model: HybridModel, share: dict[str, Tensor]) -> Tensor:
    """One micro batch through all pipeline ranks; the last one tells the others."""

    def step(batches: Any, part: Any) -> tuple[Tensor, Any]:
        return _run(part, next(batches)), lambda nats: (nats.sum(), {"nats": nats})

    windows, length = share["tokens_BT"].shape
    reports = get_forward_backward_func()(
        forward_step_func=step,
        data_iterator=iter([share]),
        model=[model],
        num_microbatches=1,
        seq_length=length * model.config.context_parallel_size,
        micro_batch_size=windows,
        forward_only=True,
    )
    device = share["tokens_BT"].device
    nats: Tensor = reports[0]["nats"] if reports else torch.empty(windows, length, device=device)
    nats = nats.contiguous()  # its memory is what travels, and Megatron's losses are transposed
    torch.distributed.broadcast(
        nats,
        src=parallel_state.get_pipeline_model_parallel_last_rank(),
        group=parallel_state.get_pipeline_model_parallel_group(),
    )
    return nats
