"""One model under training: Megatron's DDP, distributed optimizer and pipeline schedule.

The same code for one CPU process and for a cluster; losses are means over all target tokens of
the global batch, whatever the number of ranks and micro batches.

Shape letters: B windows, T tokens.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import m1.model.compat  # noqa: F401  (patches megatron-core before it is imported)

# isort: split

import torch
from megatron.core import parallel_state
from megatron.core.distributed import (
    DistributedDataParallel,
    DistributedDataParallelConfig,
    finalize_model_grads,
)
from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
from megatron.core.optimizer.clip_grads import clip_grad_by_total_norm_fp32
from megatron.core.pipeline_parallel import get_forward_backward_func
from torch import Tensor

from m1.model.context_parallel import own_share
from m1.model.layout_check import window_unit
from m1.model.spec import HybridModel
from m1.stages.settings import TrainSettings
from m1.stages.training.guard import Verdict
from m1.stages.training.measures import ExpertLoad, LayerNorms, gradient_norms

MicroBatch = dict[str, Tensor]
# (log-probabilities [B, T], micro batch) -> (summed loss, further sums to report)
LossFunction = Callable[[Tensor, MicroBatch], tuple[Tensor, dict[str, Tensor]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepReport:
    """One optimizer step: means per target token, agreed by all ranks."""

    loss: float
    gradient_norm: float
    tokens: int
    verdict: Verdict
    sums: dict[str, float]
    layer_norms: LayerNorms | None = None

    @property
    def was_applied(self) -> bool:
        """Whether the weights moved."""
        return self.verdict is Verdict.APPLY


class Judge(Protocol):
    """Decides whether an update may be applied; must say the same on every rank."""

    def __call__(self, *, loss: float, gradient_norm: float) -> Verdict:
        """The verdict on a batch that gave this loss and gradient norm."""
        ...


def apply_if_finite(*, loss: float, gradient_norm: float) -> Verdict:
    """The least that any training must ask of an update."""
    is_finite = math.isfinite(loss) and math.isfinite(gradient_norm)
    return Verdict.APPLY if is_finite else Verdict.SKIP


def cross_entropy(logprobs_BT: Tensor, batch: MicroBatch) -> tuple[Tensor, dict[str, Tensor]]:
    """Negative log-likelihood of the targets that count."""
    return -(logprobs_BT * batch["loss_mask_BT"]).sum(), {}


class Trainer:
    """Model, gradients and optimizer of this rank."""

    def __init__(self, model: HybridModel, settings: TrainSettings) -> None:
        self.model = model
        self.settings = settings
        model.config.finalize_model_grads_func = finalize_model_grads
        self.ddp = DistributedDataParallel(
            model.config,
            DistributedDataParallelConfig(
                use_distributed_optimizer=True, grad_reduce_in_fp32=settings.precision == "bf16"
            ),
            model,
        )
        self.ddp.broadcast_params()
        self.optimizer = get_megatron_optimizer(self._optimizer_config(), [self.ddp])
        self.expert_load = ExpertLoad(model)

    def _optimizer_config(self) -> OptimizerConfig:
        settings = self.settings
        half = settings.precision == "bf16"
        return OptimizerConfig(
            optimizer="adam",
            lr=settings.learning_rate,
            weight_decay=settings.weight_decay,
            adam_beta1=settings.beta1,
            adam_beta2=settings.beta2,
            adam_eps=settings.epsilon,
            clip_grad=settings.clip_gradient_norm,
            use_distributed_optimizer=True,
            bf16=half,
            params_dtype=torch.bfloat16 if half else torch.float32,
        )

    def step(
        self,
        micro_batches: Sequence[MicroBatch],
        *,
        learning_rate: float,
        loss: LossFunction = cross_entropy,
        judge: Judge = apply_if_finite,
        with_layer_norms: bool = False,
    ) -> StepReport:
        """Forward, backward and, if `judge` lets it pass, one update over all micro batches."""
        self.model.train()
        self.ddp.zero_grad_buffer()
        self.optimizer.zero_grad()
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        reports = self._run(micro_batches, loss=loss, forward_only=False)
        sums = _sum_reports(reports)
        tokens = max(sums.pop("tokens"), 1.0)
        mean_loss = sums.pop("loss") / tokens
        self.optimizer.prepare_grads()
        gradient_norm = float(self.optimizer.get_grad_norm() or 0.0)
        optimizers = self.optimizer.chained_optimizers
        layer_norms = gradient_norms(self.model, optimizers) if with_layer_norms else None
        verdict = judge(loss=mean_loss, gradient_norm=gradient_norm)
        if verdict is Verdict.APPLY:
            self._apply(gradient_norm)
        return StepReport(
            loss=mean_loss,
            gradient_norm=gradient_norm,
            tokens=int(tokens),
            verdict=verdict,
            sums=sums,
            layer_norms=layer_norms,
        )

    def _apply(self, gradient_norm: float) -> None:
        """Clip by the norm of all gradients, then update: Megatron's own step, cut in two."""
        for optimizer in self.optimizer.chained_optimizers:
            parameters = optimizer.get_parameters()
            if parameters:
                clip_grad_by_total_norm_fp32(
                    parameters,
                    max_norm=self.settings.clip_gradient_norm,
                    total_norm=gradient_norm,
                )
        self.optimizer.step_with_ready_grads()

    @torch.no_grad()
    def evaluate(self, micro_batches: Sequence[MicroBatch]) -> float:
        """Mean nats per target token, over all ranks; parameters are not touched."""
        self.model.eval()
        reports = self._run(micro_batches, loss=cross_entropy, forward_only=True)
        sums = _sum_reports(reports)
        return sums["loss"] / max(sums["tokens"], 1.0)

    def _run(
        self, micro_batches: Sequence[MicroBatch], *, loss: LossFunction, forward_only: bool
    ) -> list[dict[str, Tensor]]:
        shares = [self._own_share(batch) for batch in micro_batches]
        windows, length = shares[0]["tokens_BT"].shape
        run = get_forward_backward_func()
        reports: list[dict[str, Tensor]] = run(
            forward_step_func=_forward_step(loss),
            data_iterator=iter(shares),
            model=[self.ddp],
            num_microbatches=len(shares),
            seq_length=length * self.model.config.context_parallel_size,
            micro_batch_size=windows,
            forward_only=forward_only,
        )
        return reports

    def _own_share(self, batch: MicroBatch) -> MicroBatch:
        """This rank's part of the window; the micro batch itself if windows are not shared."""
        config = self.model.config
        return own_share(
            batch,
            rank=parallel_state.get_context_parallel_rank(),
            ranks=config.context_parallel_size,
            unit_tokens=window_unit(
                tensor=config.tensor_model_parallel_size, context=config.context_parallel_size
            ),
        )


def _forward_step(loss: LossFunction) -> Callable[[Any, Any], tuple[Tensor, Any]]:
    """Megatron's forward step for our micro batches."""

    def forward(batches: Any, model: Any) -> tuple[Tensor, Any]:
        batch = next(batches)
        inputs = batch["tokens_BT"]
        positions = torch.arange(inputs.shape[1], device=inputs.device).expand_as(inputs)
        documents = batch.get("document_ids_BT")
        output = model(inputs, positions, documents, labels=batch["targets_BT"])

        def reduce(nats_BT: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
            total, sums = loss(-nats_BT, batch)
            tokens = batch["loss_mask_BT"].sum().to(torch.int)
            report = {"loss": total.detach(), "tokens": tokens.float(), **sums}
            return total, tokens, report

        return output, reduce

    return forward


def _sum_reports(reports: Sequence[dict[str, Tensor]]) -> dict[str, float]:
    """Over micro batches, data and context ranks: the largest of `*_max`, the sum of the rest.

    Only the last pipeline rank has reports; the others learn the sums from it.
    """
    sums = [
        {
            **_reduce_reports(reports, maxima=False),
            **_reduce_reports(reports, maxima=True),
        }
        if reports
        else {}
    ]
    if parallel_state.get_pipeline_model_parallel_world_size() > 1:
        torch.distributed.broadcast_object_list(
            sums,
            src=parallel_state.get_pipeline_model_parallel_last_rank(),
            group=parallel_state.get_pipeline_model_parallel_group(),
        )
    return sums[0]


def _reduce_reports(reports: Sequence[dict[str, Tensor]], *, maxima: bool) -> dict[str, float]:
    names = [name for name in sorted(reports[0]) if name.endswith("_max") == maxima]
    if not names:
        return {}
    table = torch.stack([torch.stack([r[name].double() for name in names]) for r in reports])
    totals = table.amax(0) if maxima else table.sum(0)
    group = parallel_state.get_data_parallel_group(with_context_parallel=True)
    if torch.distributed.get_world_size(group) > 1:
        operation = torch.distributed.ReduceOp.MAX if maxima else torch.distributed.ReduceOp.SUM
        torch.distributed.all_reduce(totals, op=operation, group=group)
    return dict(zip(names, totals.tolist(), strict=True))
