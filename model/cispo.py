"""The policy objectives of the reinforce stages: CISPO, and GRPO and DAPO to compare with.

    CISPO  sg(clip(r, floor, cap)) A log pi          (M1 equations 4, 5)
    GRPO   min(r A, clip(r, 1 - low, 1 + high) A)    (DAPO: the same with a higher `high`)

A token beyond CISPO's cap keeps a (bounded) gradient; one beyond GRPO's clip loses it. No KL term.

Shape letters: B completions, T tokens.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

DEFAULT_CLIP_HIGH = {"grpo": 0.2, "dapo": 0.28}  # DAPO's published pair; facts section 6.1


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectiveSettings:
    """Which objective, and its bounds on the ratio r = pi / behaviour.

    Args:
        objective: cispo, grpo or dapo.
        is_weight_max: CISPO's cap on the importance weight, 1 + eps_high^IS; at least 1.
        is_weight_min: CISPO's floor, 1 - eps_low^IS; 0 is none (M1 section 3.1).
        clip_low: lower clip offset of GRPO and DAPO.
        clip_high: upper clip offset; by default 0.2 for GRPO, 0.28 for DAPO.
        mask_low: with mask_high, drops tokens as M1 equation 7 does; None drops none.
        mask_high: see mask_low.
        log_ratio_limit: |log r| is clamped to this before exp.
    """

    objective: Literal["cispo", "grpo", "dapo"] = "cispo"
    is_weight_max: float = 5.0  # ours: unpublished; insensitive between 4 and 8 (facts 6.1)
    is_weight_min: float = 0.0
    clip_low: float = 0.2
    clip_high: float | None = None
    mask_low: float | None = None
    mask_high: float | None = None
    log_ratio_limit: float = 20.0

    def __post_init__(self) -> None:
        if self.objective not in ("cispo", "grpo", "dapo"):
            raise ValueError(f"objective = {self.objective!r}; accepted: cispo, grpo, dapo")
        if not self.is_weight_max >= 1:
            raise ValueError(
                f"is_weight_max = {self.is_weight_max}; accepted: >= 1 (a cap on the ratio itself, "
                "not an offset from 1)"
            )
        if not 0 <= self.is_weight_min <= 1:
            raise ValueError(f"is_weight_min = {self.is_weight_min}; accepted: 0 to 1")
        if not 0 < self.clip_low <= 1 or not self.upper_clip > 0:
            raise ValueError(
                f"clip_low = {self.clip_low}, clip_high = {self.clip_high}; "
                "accepted: clip_low in (0, 1], clip_high > 0"
            )
        if (self.mask_low is None) != (self.mask_high is None):
            raise ValueError("mask_low and mask_high: accepted: both or neither")

    @property
    def upper_clip(self) -> float:
        """Upper clip offset in use."""
        if self.clip_high is not None:
            return self.clip_high
        return DEFAULT_CLIP_HIGH.get(self.objective, DEFAULT_CLIP_HIGH["grpo"])


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyLoss:
    """The loss (with gradient) and what to watch, as scalars without gradient.

    `capped_share` is the share of tokens whose ratio a bound acts on: above CISPO's cap, or
    without gradient in GRPO and DAPO.
    """

    loss: Tensor
    ratio_max: Tensor
    capped_share: Tensor
    mean_ratio: Tensor


def policy_loss(
    logprobs_BT: Tensor,
    behaviour_logprobs_BT: Tensor,
    advantages_B: Tensor,
    mask_BT: Tensor,
    *,
    settings: ObjectiveSettings,
    normaliser_tokens: Tensor | float,
) -> PolicyLoss:
    """Minus the objective, summed over masked tokens, each divided by its normaliser.

    Args:
        logprobs_BT: of the sampled tokens under the policy in training; the only gradient path.
        behaviour_logprobs_BT: of the same tokens when they were sampled.
        advantages_B: one per completion.
        mask_BT: true where a sampled token counts.
        settings: objective and bounds.
        normaliser_tokens: one number, or one per completion [B]: see `batch_normaliser` (all
            tokens) and `group_normaliser` (M1 equation 4).

    Raises:
        ValueError: the shapes disagree.
    """
    shape = logprobs_BT.shape
    if not shape == behaviour_logprobs_BT.shape == mask_BT.shape or advantages_B.shape != shape[:1]:
        raise ValueError(
            f"shapes disagree: logprobs {tuple(shape)}, behaviour "
            f"{tuple(behaviour_logprobs_BT.shape)}, mask {tuple(mask_BT.shape)}, "
            f"advantages {tuple(advantages_B.shape)}"
        )
    counts = mask_BT.bool()
    # masked places may hold anything, also inf: they are zeroed before any arithmetic
    logprobs = torch.where(counts, logprobs_BT, 0.0)
    log_ratio = logprobs - torch.where(counts, behaviour_logprobs_BT.detach(), 0.0)
    ratio = log_ratio.clamp(-settings.log_ratio_limit, settings.log_ratio_limit).exp()
    advantages = advantages_B.detach()[:, None].to(ratio).expand_as(ratio)

    if settings.objective == "cispo":
        objective, is_bounded = _cispo(logprobs, ratio.detach(), advantages, settings)
    else:
        objective, is_bounded = _clipped(ratio, advantages, settings)
    kept = counts & _unified_mask(ratio.detach(), advantages, settings)
    divisor = torch.as_tensor(normaliser_tokens, device=ratio.device, dtype=ratio.dtype)
    if divisor.dim():
        divisor = divisor[:, None]
    loss = -(torch.where(kept, objective, 0.0) / divisor).sum()
    return PolicyLoss(loss=loss, **_watched(ratio.detach(), counts, is_bounded))


def _cispo(
    logprobs: Tensor, ratio: Tensor, advantages: Tensor, settings: ObjectiveSettings
) -> tuple[Tensor, Tensor]:
    weight = ratio.clamp(settings.is_weight_min, settings.is_weight_max)
    return weight * advantages * logprobs, ratio > settings.is_weight_max


def _clipped(
    ratio: Tensor, advantages: Tensor, settings: ObjectiveSettings
) -> tuple[Tensor, Tensor]:
    clipped = ratio.clamp(1 - settings.clip_low, 1 + settings.upper_clip)
    plain, bounded = ratio * advantages, clipped * advantages
    return torch.minimum(plain, bounded), (bounded < plain).detach()


def _unified_mask(ratio: Tensor, advantages: Tensor, settings: ObjectiveSettings) -> Tensor:
    """M1 equation 7: false where a further step in the advantage's direction is refused."""
    if settings.mask_low is None or settings.mask_high is None:
        return torch.ones_like(ratio, dtype=torch.bool)
    too_high = (advantages > 0) & (ratio > 1 + settings.mask_high)
    too_low = (advantages < 0) & (ratio < 1 - settings.mask_low)
    return ~(too_high | too_low)


def _watched(ratio: Tensor, counts: Tensor, is_bounded: Tensor) -> dict[str, Tensor]:
    tokens = counts.sum().clamp(min=1)
    return {
        "ratio_max": torch.where(counts, ratio, 0.0).max(),
        "capped_share": (counts & is_bounded).sum() / tokens,
        "mean_ratio": torch.where(counts, ratio, 0.0).sum() / tokens,
    }


def batch_normaliser(mask_BT: Tensor) -> Tensor:
    """All counted tokens, at least one: the mean over the tokens of the batch."""
    return mask_BT.sum().clamp(min=1)


def group_normaliser(mask_BT: Tensor, groups_B: Tensor) -> Tensor:
    """Per completion [B]: tokens of its group times the number of groups (M1 equation 4).

    The loss is then the mean over groups of each group's mean over its tokens, so a group of long
    completions counts no more than one of short ones.

    Args:
        mask_BT: true where a sampled token counts.
        groups_B: the prompt each completion belongs to; any integers.
    """
    _, group_B = torch.unique(groups_B, return_inverse=True)
    count = int(group_B.max()) + 1
    tokens = torch.zeros(count, dtype=torch.float32, device=mask_BT.device)
    tokens.index_add_(0, group_B, mask_BT.sum(1).float())
    return tokens.clamp(min=1)[group_B] * count
