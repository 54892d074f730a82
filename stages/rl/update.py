"""From rollouts to micro batches and to the loss that the trainer minimises (M1 section 3.1).

Shape letters: B sequences, T tokens.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from m1.model.cispo import ObjectiveSettings, policy_loss
from m1.stages.rl.rollout import Group, Sample
from m1.stages.settings import ReinforceSettings
from m1.stages.training.trainer import LossFunction, MicroBatch

Weighted = tuple[Sample, float]


def weighted_samples(groups: Sequence[Group], *, normaliser: str) -> list[Weighted]:
    """Every sample of the groups with signal, with the weight of its tokens in the mean.

    `batch`: every token counts the same. `group` (M1 equation 4): every prompt counts the same, so
    a token weighs by how few its group has. `sample`: every response counts the same (M1 section 5
    adds a sample-level loss late in training). Weights have mean one over all tokens.
    """
    used = [
        [sample for sample in group.samples if not sample.is_masked]
        for group in groups
        if group.has_signal
    ]
    total = sum(_tokens(samples) for samples in used)
    count = sum(len(samples) for samples in used)
    weights: list[Weighted] = []
    for samples in used:
        for sample in samples:
            weight = {
                "batch": 1.0,
                "group": total / (len(used) * _tokens(samples)),
                "sample": total / (count * _tokens([sample])),
            }[normaliser]
            weights.append((sample, weight))
    return weights


def _tokens(samples: Sequence[Sample]) -> int:
    return max(1, sum(len(sample.response_token_ids) for sample in samples))


def to_micro_batches(
    everyone: Sequence[Weighted], *, rank: int, world: int, windows: int
) -> list[MicroBatch]:
    """This rank's sequences in batches of at most `windows`.

    All ranks make equally many, so that all take part in every collective: one that has fewer
    sequences fills up with the first one under a mask of zero.
    """
    count = -(-len(everyone) // (world * windows))
    own = everyone[rank::world]
    batches = []
    for index in range(count):
        part = own[index * windows : (index + 1) * windows]
        batches.append(_to_batch(part or everyone[:1], counts=1.0 if part else 0.0))
    return batches


def _to_batch(chosen: Sequence[Weighted], *, counts: float) -> MicroBatch:
    """Sequences padded on the right; only responses count."""
    longest = max(len(s.prompt_token_ids) + len(s.response_token_ids) for s, _ in chosen)
    shape = (len(chosen), longest)
    tokens = torch.zeros(shape, dtype=torch.long)
    mask = torch.zeros(shape)
    behaviour = torch.zeros(shape)
    for row, (sample, _weight) in enumerate(chosen):
        start = len(sample.prompt_token_ids)
        stop = start + len(sample.response_token_ids)
        tokens[row, :stop] = torch.tensor(sample.prompt_token_ids + sample.response_token_ids)
        mask[row, start:stop] = counts
        behaviour[row, start:stop] = torch.tensor(sample.behaviour_logprobs)
    batch = {
        "tokens_BT": tokens[:, :-1],
        "targets_BT": tokens[:, 1:],
        "loss_mask_BT": mask[:, 1:],
        "behaviour_BT": behaviour[:, 1:],
        "advantages_B": torch.tensor([s.advantage for s, _ in chosen]),
        "weights_B": torch.tensor([weight for _, weight in chosen]),
    }
    device = torch.device("cuda") if torch.cuda.is_available() else torch.device("cpu")
    return {name: tensor.contiguous().to(device) for name, tensor in batch.items()}


def objective_settings(settings: ReinforceSettings) -> ObjectiveSettings:
    """The objective and its bounds as the settings name them."""
    return ObjectiveSettings(
        objective=settings.objective,
        is_weight_max=settings.is_weight_max,
        is_weight_min=settings.is_weight_min,
        clip_low=settings.clip_low,
        clip_high=settings.clip_high,
        mask_low=settings.mask_low,
        mask_high=settings.mask_high,
    )


def policy_objective(settings: ReinforceSettings) -> LossFunction:
    """The loss of one update, summed over tokens; the trainer divides by their number."""
    objective = objective_settings(settings)

    def loss(logprobs_BT: Tensor, batch: MicroBatch) -> tuple[Tensor, dict[str, Tensor]]:
        mask = batch["loss_mask_BT"]
        answer = policy_loss(
            logprobs_BT,
            batch["behaviour_BT"],
            batch["advantages_B"],
            mask,
            settings=objective,
            normaliser_tokens=1.0 / batch["weights_B"],
        )
        with torch.no_grad():
            sums = {
                "gap": ((logprobs_BT - batch["behaviour_BT"]).abs() * mask).sum(),
                "capped": answer.capped_share * mask.sum(),
                "ratio_max": answer.ratio_max,
                "nats": -(logprobs_BT * mask).sum(),
            }
        return answer.loss, sums

    return loss
