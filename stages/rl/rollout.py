"""Rollouts: prompts in, sampled and judged responses out, in groups.

`Rollouts` is the protocol; `InProcessRollouts` samples with the decoder that shares the trainer's
weights, so there is nothing to synchronise and the head is the same fp32 product on both sides.
"""

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from m1.data_recipes.chat import parse_response
from m1.data_recipes.tasks.families import Task, Verdict, make_tasks, verify
from m1.data_recipes.tokenizer import Tokenizer
from m1.model.decode import Completion, Request, Sampling
from m1.stages.rl.advantage import judged_advantages, reward
from m1.stages.rl.curriculum import Curriculum
from m1.stages.settings import ReinforceSettings
from m1.stages.training.evaluation import task_prompt

POOL_PROBLEMS = 2048  # problems per family that prompts are drawn from; every family has them


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One response with everything the update needs; `is_masked`: it could not be judged."""

    family: str
    prompt_token_ids: tuple[int, ...]
    response_token_ids: tuple[int, ...]
    behaviour_logprobs: tuple[float, ...]
    reward: float
    correctness: float
    advantage: float
    finish_reason: str
    text: str
    is_masked: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """All responses to one prompt; `samples` is empty of signal when all rewards are equal."""

    task: Task
    samples: tuple[Sample, ...]
    has_signal: bool


class Rollouts(Protocol):
    """Anything that samples responses with their log-probabilities."""

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Completion]:
        """One completion per request, in order."""
        ...


class Prompts:
    """Draws problems by curriculum, as a pure function of (seed, step, round)."""

    def __init__(self, settings: ReinforceSettings, seed: int) -> None:
        self.settings = settings
        self.seed = seed
        self._pools: dict[str, list[Task]] = {}

    def draw(self, curriculum: Curriculum, *, step: int, round_: int, count: int) -> list[Task]:
        """`count` problems of the families that `curriculum` favours at `step`."""
        rng = random.Random(stable_seed(self.seed, step, round_))  # noqa: S311
        families = curriculum.draw(step, count, rng)
        return [rng.choice(self._pool(name, curriculum)) for name in families]

    def _pool(self, family: str, curriculum: Curriculum) -> list[Task]:
        if family not in self._pools:
            self._pools[family] = make_tasks(
                family,
                count=POOL_PROBLEMS,
                difficulty=curriculum.families[family].difficulty,
                seed=self.seed,
                split="reinforce",
            )
        return self._pools[family]


def stable_seed(*parts: int) -> int:
    """A seed that depends on all parts and on nothing else."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:6], "big")


def sampling_of(settings: ReinforceSettings, tokenizer: Tokenizer) -> Sampling:
    """Sampling for rollouts: temperature only; a nucleus would bias the importance ratio."""
    return Sampling(
        temperature=settings.temperature,
        stop_token_ids=(tokenizer.end_of_sentence_id,),
        repetition_probability=settings.repetition_probability,
        repetition_tokens=settings.repetition_tokens,
    )


def roll_out(
    rollouts: Rollouts,
    tokenizer: Tokenizer,
    tasks: Sequence[Task],
    *,
    settings: ReinforceSettings,
    window_tokens: int,
    seed: int,
) -> list[Group]:
    """Sample a group of responses for every problem, judge them, and compute advantages.

    Args:
        rollouts: what samples.
        tokenizer: of the model.
        tasks: one group each.
        settings: group size, temperature, rewards.
        window_tokens: longest response now; at most the stage's own window.
        seed: of all requests.
    """
    size = settings.samples_per_prompt
    requests = [
        Request(
            prompt_token_ids=task_prompt(tokenizer, task),
            max_new_tokens=window_tokens,
            seed=stable_seed(seed, index, copy),
        )
        for index, task in enumerate(tasks)
        for copy in range(size)
    ]
    done = rollouts.generate(requests, sampling_of(settings, tokenizer))
    return [
        _group(
            task,
            requests[index * size],
            done[index * size : (index + 1) * size],
            tokenizer,
            settings.model_copy(update={"window_tokens": window_tokens}),
        )
        for index, task in enumerate(tasks)
    ]


def _group(
    task: Task,
    request: Request,
    completions: Sequence[Completion],
    tokenizer: Tokenizer,
    settings: ReinforceSettings,
) -> Group:
    verdicts: list[Verdict] = [
        verify(task, parse_response(tokenizer, c.token_ids)) for c in completions
    ]
    rewards = [
        reward(
            verdict,
            length_tokens=len(c.token_ids),
            was_cut=c.finish_reason == "length",
            settings=settings,
        )
        for verdict, c in zip(verdicts, completions, strict=True)
    ]
    advantages = judged_advantages(verdicts, rewards)
    samples = tuple(
        Sample(
            family=task.family,
            prompt_token_ids=tuple(request.prompt_token_ids),
            response_token_ids=tuple(c.token_ids),
            behaviour_logprobs=tuple(c.logprobs),
            reward=rewards[index],
            correctness=verdicts[index].correctness,
            advantage=advantages[index] if advantages else 0.0,
            finish_reason=c.finish_reason,
            text=tokenizer.decode(c.token_ids),
            is_masked=verdicts[index].is_masked,
        )
        for index, c in enumerate(completions)
    )
    return Group(task=task, samples=samples, has_signal=advantages is not None)
