"""What every training stage measures before and after: held-out loss and task accuracy.

Shape letters: B windows, T tokens.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from m1.data_recipes.chat import Message, parse_response, prompt_token_ids
from m1.data_recipes.pack import TokenBatch, TokenShards, WindowPlan
from m1.data_recipes.tasks.families import Task, make_tasks, verify
from m1.data_recipes.tokenizer import Tokenizer
from m1.model.decode import Decoder, Request, Sampling
from m1.model.spec import HybridModel, forward_nats
from m1.stages.settings import TaskMix

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
def loss_by_position(model: HybridModel, batches: Iterable[TokenBatch]) -> Tensor:
    """Mean nats per target at each position of the window, [T]; NaN where nothing was counted."""
    model.eval()
    total: Tensor | None = None
    count: Tensor | None = None
    for batch in batches:
        device = next(model.parameters()).device
        tokens = batch.tokens_BT.to(device)
        documents = batch.document_ids_BT[:, :-1].to(device)
        mask = batch.loss_mask_BT.to(device)
        nats = (forward_nats(model, tokens, documents) * mask).double().sum(0)
        total = nats if total is None else total + nats
        count = mask.double().sum(0) if count is None else count + mask.double().sum(0)
    assert total is not None
    assert count is not None
    return (total / count).cpu()


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
    """Shares of held-out problems of one family answered right."""

    greedy: float
    sampled: float
    problems: int
    mean_tokens: float


def task_accuracy(
    model: HybridModel,
    tokenizer: Tokenizer,
    tasks: Mapping[str, TaskMix],
    *,
    problems: int,
    longest_tokens: int,
) -> dict[str, TaskAccuracy]:
    """Greedy and sampled accuracy per family on held-out problems."""
    model.eval()
    decoder = Decoder(model, model.config.hybrid, rotary_base=model.rotary_base)
    answers = {}
    for family, mix in tasks.items():
        chosen = make_tasks(
            family,
            count=problems,
            difficulty=mix.difficulty,
            seed=EVALUATION_SEED,
            split="heldout",
        )
        requests = [
            Request(
                prompt_token_ids=task_prompt(tokenizer, task),
                max_new_tokens=longest_tokens,
                seed=EVALUATION_SEED + index,
            )
            for index, task in enumerate(chosen)
        ]
        shares, lengths = [], []
        for temperature in (0.0, 1.0):
            sampling = Sampling(
                temperature=temperature, stop_token_ids=(tokenizer.end_of_sentence_id,)
            )
            done = decoder.generate(requests, sampling)
            right = [
                verify(task, parse_response(tokenizer, c.token_ids)).correctness
                for task, c in zip(chosen, done, strict=True)
            ]
            shares.append(sum(right) / len(right))
            lengths.append(sum(len(c.token_ids) for c in done) / len(done))
        answers[family] = TaskAccuracy(
            greedy=shares[0], sampled=shares[1], problems=problems, mean_tokens=lengths[1]
        )
    return answers


def task_prompt(tokenizer: Tokenizer, task: Task) -> list[int]:
    """Token ids of the chat prompt of a task."""
    return prompt_token_ids(tokenizer, [Message(role="user", content=task.prompt)])
