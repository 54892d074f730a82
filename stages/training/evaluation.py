"""What every training stage measures before and after: held-out loss and task accuracy.

Shape letters: B windows, T tokens.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import m1.model.compat  # noqa: F401  (patches megatron-core before it is imported)

# isort: split

import numpy as np
import torch
from megatron.core import parallel_state
from torch import Tensor

from m1.data_recipes.chat import Message, parse_response, prompt_token_ids
from m1.data_recipes.pack import TokenBatch, TokenShards, WindowPlan
from m1.data_recipes.tasks.families import Task, make_tasks, verify
from m1.data_recipes.tokenizer import Tokenizer
from m1.model.decode import Completion, Decoder, Request, Sampling
from m1.model.spec import HybridModel, forward_nats
from m1.model.whole_weights import whole_weights
from m1.stages.settings import TaskMix
from m1.stages.training.session import data_rank

T = TypeVar("T")
Answer = tuple[float | None, int]  # correctness, None where it could not be judged; tokens

EVALUATION_SEED = 20_250_616  # ours: the same held-out problems in every stage and run


def heldout_batches(
    shards: TokenShards,
    *,
    weights: Mapping[str, float],
    window_tokens: int,
    tokens: int,
    inside_documents: bool = False,
) -> list[TokenBatch]:
    """The same held-out windows for everyone who asks with the same numbers."""
    windows = max(1, -(-tokens // window_tokens))
    per_batch = max(1, min(windows, 8192 // window_tokens))
    plan = WindowPlan(
        shards,
        weights=weights,
        window_tokens=window_tokens,
        windows_per_step=per_batch,
        steps=-(-windows // per_batch),
        seed=EVALUATION_SEED,
        min_document_tokens=window_tokens + 1 if inside_documents else 0,
    )
    return [plan.batch(step) for step in range(-(-windows // per_batch))]


@torch.no_grad()
def loss_by_position(model: HybridModel, batches: Sequence[TokenBatch]) -> Tensor:
    """Mean nats per target at each position of the window, [T]; NaN where nothing was counted.

    Data-parallel ranks share the batches; all of them get the answer.
    """
    model.eval()
    device = next(model.parameters()).device
    rank, world = data_rank()
    sums_2T = torch.zeros(2, batches[0].loss_mask_BT.shape[1], dtype=torch.float64, device=device)
    for place in range(rank, rank + len(batches), world):
        # ranks without a batch left repeat one: where experts are shared nobody may stay away
        batch, counts = batches[place % len(batches)], float(place < len(batches))
        tokens, mask = batch.tokens_BT.to(device), counts * batch.loss_mask_BT.to(device)
        nats = forward_nats(model, tokens, batch.document_ids_BT[:, :-1].to(device)) * mask
        sums_2T += torch.stack([nats.double().sum(0), mask.double().sum(0)])
    if world > 1:
        torch.distributed.all_reduce(sums_2T, group=parallel_state.get_data_parallel_group())
    return (sums_2T[0] / sums_2T[1]).cpu()


def mean_loss(model: HybridModel, batches: Sequence[TokenBatch]) -> float:
    """Mean nats per target token."""
    return float(loss_by_position(model, batches).nanmean())


def unigram_entropy(batches: Iterable[TokenBatch], vocabulary_size: int) -> float:
    """Nats per token of the best constant guess for these very targets."""
    counts = np.zeros(vocabulary_size)
    for batch in batches:
        targets = batch.tokens_BT[:, 1:][batch.loss_mask_BT > 0]
        counts += np.bincount(targets.flatten().numpy(), minlength=vocabulary_size)
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log(shares)).sum())


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskAccuracy:
    """Shares of held-out problems of one family answered right; None where not asked for."""

    greedy: float | None
    sampled: float
    problems: int
    mean_tokens: float


def heldout_tasks(tasks: Mapping[str, TaskMix], problems: int) -> list[Task]:
    """The same held-out problems for everyone, `problems` of each family."""
    return [
        task
        for family, mix in tasks.items()
        for task in make_tasks(
            family,
            count=problems,
            difficulty=mix.difficulty,
            seed=EVALUATION_SEED,
            split="heldout",
        )
    ]


def answer_tasks(
    model: HybridModel,
    tokenizer: Tokenizer,
    tasks: Sequence[Task],
    *,
    temperature: float,
    longest_tokens: int,
    copy: int = 0,
) -> list[Answer]:
    """Correctness and length of one answer per problem; all ranks share the work."""
    model.eval()
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    own = tasks[rank::world]
    requests = [
        Request(
            prompt_token_ids=task_prompt(tokenizer, task),
            max_new_tokens=longest_tokens,
            seed=EVALUATION_SEED + 1_000_003 * copy + rank + world * index,
        )
        for index, task in enumerate(own)
    ]
    sampling = Sampling(temperature=temperature, stop_token_ids=(tokenizer.end_of_sentence_id,))
    decoder = Decoder(whole_weights(model), model.config.hybrid, rotary_base=model.rotary_base)
    answers = [
        (_correctness(task, tokenizer, done), len(done.token_ids))
        for task, done in zip(own, decoder.generate(requests, sampling), strict=True)
    ]
    return interleave_ranks(gather(answers), len(tasks))


def _correctness(task: Task, tokenizer: Tokenizer, done: Completion) -> float | None:
    verdict = verify(task, parse_response(tokenizer, done.token_ids))
    return None if verdict.is_masked else verdict.correctness


def gather(own: list[T]) -> list[list[T]]:
    """The lists of all ranks, on every rank."""
    everyone: list[list[T]] = [own] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(everyone, own)
    return everyone


def interleave_ranks(parts: Sequence[Sequence[T]], total: int) -> list[T]:
    """Undo `items[rank::world]`: item i sits on rank i modulo world."""
    return [parts[index % len(parts)][index // len(parts)] for index in range(total)]


def task_accuracy(
    model: HybridModel,
    tokenizer: Tokenizer,
    tasks: Mapping[str, TaskMix],
    *,
    problems: int,
    longest_tokens: int,
    with_greedy: bool = True,
) -> dict[str, TaskAccuracy]:
    """Sampled and greedy accuracy per family on held-out problems."""
    chosen = heldout_tasks(tasks, problems)
    if not chosen:
        return {}
    sampled, greedy = (
        answer_tasks(
            model, tokenizer, chosen, temperature=temperature, longest_tokens=longest_tokens
        )
        if wanted
        else None
        for temperature, wanted in ((1.0, True), (0.0, with_greedy))
    )
    assert sampled is not None
    return {
        family: TaskAccuracy(
            sampled=_share_right(sampled, place),
            greedy=_share_right(greedy, place) if greedy else None,
            problems=problems,
            mean_tokens=sum(length for _, length in sampled[place]) / problems,
        )
        for family, place in _places(tasks, problems)
    }


def accuracy_metrics(accuracy: Mapping[str, TaskAccuracy], suffix: str) -> dict[str, object]:
    """`accuracy` (sampled, mean over families), `accuracy_greedy`, and both per family."""
    count = max(1, len(accuracy))
    greedy = [a.greedy for a in accuracy.values() if a.greedy is not None]
    metrics: dict[str, object] = {
        f"accuracy{suffix}": sum(a.sampled for a in accuracy.values()) / count,
        f"accuracy_by_task{suffix}": {
            name: {"sampled": a.sampled, "greedy": a.greedy, "problems": a.problems}
            for name, a in accuracy.items()
        },
    }
    if greedy:
        metrics[f"accuracy_greedy{suffix}"] = sum(greedy) / len(greedy)
    return metrics


def _places(tasks: Mapping[str, TaskMix], problems: int) -> list[tuple[str, slice]]:
    """Where the answers of each family stand in the joined list."""
    return [
        (family, slice(number * problems, (number + 1) * problems))
        for number, family in enumerate(tasks)
    ]


def _share_right(answers: Sequence[Answer], place: slice) -> float:
    """Of what could be judged."""
    judged = [correctness for correctness, _ in answers[place] if correctness is not None]
    return sum(judged) / max(1, len(judged))


def task_prompt(tokenizer: Tokenizer, task: Task) -> list[int]:
    """Token ids of the chat prompt of a task."""
    return prompt_token_ids(tokenizer, [Message(role="user", content=task.prompt)])
