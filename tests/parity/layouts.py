"""A small hybrid model under any layout: what the parity tests run inside each rank."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch.nn.functional import cross_entropy

from m1.model.config import ModelConfig, ParallelLayout
from m1.model.context_parallel import gather_window, take_own
from m1.model.lightning_attention import lightning_attention
from m1.model.lightning_context import lightning_over_ranks
from m1.model.process_groups import process_groups
from m1.model.softmax_attention import attention_over_ranks
from m1.model.spec import BuildOptions, HybridModel, build_model, forward_logits, forward_nats
from m1.model.whole_weights import whole_weights
from m1.stages.settings import TrainSettings
from m1.stages.training.checkpoint_format import load_training, save_training
from m1.stages.training.session import data_rank
from m1.stages.training.trainer import MicroBatch, Trainer
from tests.parity.ranks import meet_anew

# six layers, softmax at 2 and 5: four pipeline ranks cannot hold equally many
SHAPE = ModelConfig(
    num_layers=6, softmax_every=3, hidden_size=32, num_heads=8, head_width=8,
    num_key_value_heads=4, num_experts=4, experts_per_token=2, expert_hidden_size=24,
    vocabulary_size=96, rotary_width=4, rotary_base=100.0,
)  # fmt: skip
WINDOW_TOKENS = 64
ODD_TOKENS = 53
WINDOWS = 4
SETTINGS = TrainSettings(
    learning_rate=1e-2, clip_gradient_norm=0.5, router_auxiliary_coefficient=0.1
)
STEPS = 4
SAVED_STEPS = 2
SEED = 7
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # of each rank its own

Curve = list[tuple[float, float]]  # loss and gradient norm of each step


def layout(*, ranks: int = 0, **axes: int) -> ParallelLayout:
    """One node with `ranks` ranks, by default just as many as the axes need."""
    needed = axes.get("tensor", 1) * axes.get("pipeline", 1) * axes.get("context", 1)
    return ParallelLayout(processes_per_node=ranks or needed, **axes)


def windows_of_step(step: int) -> MicroBatch:
    """All windows of a step: packed documents of uneven length, some targets masked."""
    generator = torch.Generator().manual_seed(1000 + step)
    shape = (WINDOWS, WINDOW_TOKENS)
    tokens = torch.randint(0, 12, (WINDOWS, WINDOW_TOKENS + 1), generator=generator).cumsum(1)
    tokens %= SHAPE.vocabulary_size
    starts = torch.rand(shape, generator=generator) < 0.06
    starts[0, WINDOW_TOKENS // 2] = True  # a document may begin where a chunk does
    starts[1] = False  # or fill the window
    return {
        "tokens_BT": tokens[:, :-1],
        "targets_BT": tokens[:, 1:],
        "document_ids_BT": starts.cumsum(1),
        "loss_mask_BT": (torch.rand(shape, generator=generator) < 0.8).float(),
    }


def own_micro_batches(step: int, *, tokens: int = WINDOW_TOKENS) -> list[MicroBatch]:
    """The first tokens of this data-parallel rank's windows, one window per micro batch."""
    rank, world = data_rank()
    everything = windows_of_step(step)
    return [
        {name: x[row : row + 1, :tokens].contiguous().to(DEVICE) for name, x in everything.items()}
        for row in range(rank, WINDOWS, world)
    ]


def open_model(layout: ParallelLayout) -> HybridModel:
    """The part of this rank, with the same starting weights under every layout."""
    options = BuildOptions(
        rotary_base=SHAPE.rotary_base,
        window_tokens=WINDOW_TOKENS,
        router_auxiliary_coefficient=SETTINGS.router_auxiliary_coefficient,
        seed=SEED,
    )
    return build_model(SHAPE, layout, options)


def open_trainer(layout: ParallelLayout) -> Trainer:
    return Trainer(open_model(layout), SETTINGS)


def run_steps(trainer: Trainer, first: int, last: int) -> Curve:
    reports = [
        trainer.step(own_micro_batches(step), learning_rate=SETTINGS.learning_rate)
        for step in range(first, last)
    ]
    return [(report.loss, report.gradient_norm) for report in reports]


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What one rank saw under one layout.

    Args:
        weights_sha256: of the whole starting weights, as decoding and export get them.
        nats_BT: of every token, before training.
        rewritten_nats_BT: the same with every other document of each window rewritten.
        nats_from_logits_BT: the same as `nats_BT`, from gathered logits.
        odd_loss: the trainer's loss of windows whose length no layout divides.
        curve: of all steps.
    """

    weights_sha256: str
    nats_BT: NDArray[Any]
    rewritten_nats_BT: NDArray[Any]
    nats_from_logits_BT: NDArray[Any]
    odd_loss: float
    curve: Curve


def examine(layouts: Mapping[str, ParallelLayout], directory: Path) -> dict[str, Findings]:
    """Everything about each layout; leaves a checkpoint of `SAVED_STEPS` steps behind."""
    findings = {}
    for name, chosen in layouts.items():
        meet_anew()
        with process_groups(chosen, seed=SEED):
            trainer = open_trainer(chosen)
            before = _measure(trainer.model)
            odd_loss = trainer.evaluate(own_micro_batches(0, tokens=ODD_TOKENS))
            curve = run_steps(trainer, 0, SAVED_STEPS)
            save_training(trainer, directory / name)
            curve += run_steps(trainer, SAVED_STEPS, STEPS)
            findings[name] = Findings(curve=curve, odd_loss=odd_loss, **before)
    return findings


@torch.no_grad()
def _measure(model: HybridModel) -> dict[str, Any]:
    model.eval()
    ids, tokens = windows_of_step(0)["document_ids_BT"].to(DEVICE), next_tokens().to(DEVICE)
    rewritten = rewritten_tokens().to(DEVICE)
    logits = forward_logits(model, tokens[:, :-1], ids)
    from_logits = cross_entropy(logits.transpose(1, 2), tokens[:, 1:], reduction="none")
    return {
        "weights_sha256": _digest(whole_weights(model)),
        "nats_BT": forward_nats(model, tokens, ids).cpu().numpy(),
        "rewritten_nats_BT": forward_nats(model, rewritten, ids).cpu().numpy(),
        "nats_from_logits_BT": from_logits.cpu().numpy(),
    }


def _digest(weights: Mapping[str, torch.Tensor]) -> str:
    found = hashlib.sha256()
    for name, weight in sorted(weights.items()):
        found.update(name.encode())
        found.update(weight.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


def load_and_train(
    pairs: Mapping[str, tuple[str, ParallelLayout]], directory: Path
) -> dict[str, Curve]:
    """The steps after a checkpoint of another layout, under each layout."""
    curves = {}
    for name, (source, chosen) in pairs.items():
        meet_anew()
        with process_groups(chosen, seed=SEED):
            trainer = open_trainer(chosen)
            load_training(trainer, directory / source)
            curves[name] = run_steps(trainer, SAVED_STEPS, STEPS)
    return curves


def next_tokens() -> torch.Tensor:
    batch = windows_of_step(0)
    return torch.cat([batch["tokens_BT"], batch["targets_BT"][:, -1:]], 1)


def rewritten_tokens() -> torch.Tensor:
    """Odd documents hold other tokens, even ones what they held."""
    ids = windows_of_step(0)["document_ids_BT"]
    whole = torch.cat([ids, ids[:, -1:]], 1)
    return torch.where(whole % 2 == 1, (next_tokens() + 31) % SHAPE.vocabulary_size, next_tokens())


# ---- one attention over context ranks ----------------------------------------------------------

CASES = {
    "one chunk each": (8, False),
    "short documents": (152, True),
    "one long document": (1200, False),
    "long documents": (2080, True),
}
SLOPES_H = torch.tensor([0.7, 0.11, 0.02, 1e-3])


def attention_case(length: int, has_documents: bool) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Queries, keys, values and the gradient of the output, [B, T, H, W]; document ids [B, T]."""
    generator = torch.Generator().manual_seed(length)
    tensors = [torch.randn(2, length, 4, 8, generator=generator) * 0.5 for _ in range(4)]
    starts = torch.rand(2, length, generator=generator) < 8 / length
    starts[0, length // 2] = True
    return tensors, (starts.cumsum(1) if has_documents else torch.zeros(2, length)).long()


def attend_over_ranks(context: int) -> dict[str, list[NDArray[Any]]]:
    """Output and gradients of both attentions in window order, for every case; [T, B, H, W]."""
    answers = {}
    meet_anew()
    with process_groups(layout(context=context), seed=SEED):
        group = torch.distributed.group.WORLD
        for name, (length, has_documents) in CASES.items():
            tensors, ids = attention_case(length, has_documents)
            given = ids.to(DEVICE) if has_documents else None
            for kind in ("lightning", "softmax"):
                own = [
                    take_own(x.to(DEVICE), 1, rank=group.rank(), ranks=context).requires_grad_()
                    for x in tensors
                ]
                output = _attend(kind, own[:3], given, group)
                output.backward(own[3].detach())
                parts = [output.detach(), *(x.grad for x in own[:3])]
                answers[f"{kind}, {name}"] = [
                    gather_window(part.transpose(0, 1), group).cpu().numpy() for part in parts
                ]
    return answers


def _attend(
    kind: str,
    qkv_BTHW: list[torch.Tensor],
    ids_BT: torch.Tensor | None,
    group: torch.distributed.ProcessGroup,
) -> torch.Tensor:
    if kind == "softmax":
        q, k, v = (x.transpose(0, 1) for x in qkv_BTHW)
        return attention_over_ranks((q, k, v), ids_BT, group).transpose(1, 2)
    q, k, v = (x.transpose(1, 2) for x in qkv_BTHW)
    return lightning_over_ranks(
        lightning_attention, (q, k, v), SLOPES_H.to(DEVICE), ids_BT, group
    ).transpose(1, 2)
