"""One forward pass under any layout: every rank gets the answer for the whole window.

Training goes through Megatron's schedules with gradients; this is for measuring.

Shape letters: B windows, T tokens, V vocabulary.
"""

from typing import Any

import m1.model.compat  # noqa: F401  (patches megatron-core before it is imported)

# isort: split

import torch
from megatron.core import parallel_state
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.tensor_parallel import gather_from_tensor_model_parallel_region
from torch import Tensor

from m1.model.context_parallel import gather_window, own_share
from m1.model.layout_check import window_unit

Share = dict[str, Tensor]


def forward_window(
    model: Any,
    tokens_BT: Tensor,
    document_ids_BT: Tensor | None,
    targets_BT: Tensor | None = None,
) -> Tensor:
    """Logits [B, T, V], or negative log-likelihoods [B, T] of the targets if there are any.

    All tensor, pipeline and context ranks of a data-parallel rank call it with the same windows;
    with experts spread over data-parallel ranks these call it equally often.
    """
    share = _own_share(model.config, tokens_BT, document_ids_BT, targets_BT)
    if model.config.pipeline_model_parallel_size > 1:
        output = _through_the_pipeline(model, share)
    else:
        output = _run(model, share)
    if model.config.context_parallel_size > 1:
        group = parallel_state.get_context_parallel_group()
        output = gather_window(output.transpose(0, 1), group).transpose(0, 1)
    return output[:, : tokens_BT.shape[1]]


def _own_share(
    config: Any, tokens_BT: Tensor, document_ids_BT: Tensor | None, targets_BT: Tensor | None
) -> Share:
    tensor, context = config.tensor_model_parallel_size, config.context_parallel_size
    named = {
        "tokens_BT": tokens_BT,
        "document_ids_BT": document_ids_BT,
        "targets_BT": targets_BT,
    }
    return own_share(
        {name: x for name, x in named.items() if x is not None},
        rank=parallel_state.get_context_parallel_rank(),
        ranks=context,
        unit_tokens=window_unit(tensor=tensor, context=context),
    )


def _run(model: Any, share: Share) -> Tensor:
    """What this rank's layers make of its share; the last pipeline rank's is the answer."""
    tokens, targets = share["tokens_BT"], share.get("targets_BT")
    positions = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
    output: Tensor = model(tokens, positions, share.get("document_ids_BT"), labels=targets)
    is_split = model.post_process and targets is None and model.parallel_output
    return gather_from_tensor_model_parallel_region(output) if is_split else output


def _through_the_pipeline(model: Any, share: Share) -> Tensor:
    """One micro batch through all pipeline ranks; the last one tells the others."""

    def step(shares: Any, part: Any) -> tuple[Tensor, Any]:
        return _run(part, next(shares)), lambda output: (output.sum(), {"output": output})

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
    shape = (windows, length) if "targets_BT" in share else (windows, length, model.vocab_size)
    device = share["tokens_BT"].device
    output: Tensor = reports[0]["output"] if reports else torch.empty(shape, device=device)
    output = output.contiguous()  # its memory is what travels, and Megatron's are transposed
    torch.distributed.broadcast(
        output,
        src=parallel_state.get_pipeline_model_parallel_last_rank(),
        group=parallel_state.get_pipeline_model_parallel_group(),
    )
    return output
