"""Signs that a policy is going wrong, measured on its own rollouts, and when to stop. Pure.

M1 names three: sampler and trainer drift apart (section 3.2), patterns collapse late in long
windows (section 5), lengths grow while the reward does not (section 4.2). Thresholds are ours.
"""

from collections import Counter
from collections.abc import Sequence

from m1.infra.errors import StageFailedError

GRAM_TOKENS = 4  # ours: n of the repeated n-grams
REPEATED_RESPONSE_SHARE = 0.5  # ours: a response is a loop above this share of repeated n-grams
TAIL_TOKENS = 64  # ours: loops show at the end of long responses


def repeated_share(token_ids: Sequence[int], *, gram: int = GRAM_TOKENS) -> float:
    """Share of the n-grams of a response that stood in it before; 0 for short ones."""
    grams = [tuple(token_ids[i : i + gram]) for i in range(len(token_ids) - gram + 1)]
    return 1.0 - len(set(grams)) / len(grams) if grams else 0.0


def loop_share(responses: Sequence[Sequence[int]]) -> float:
    """Share of responses whose last tokens go round in circles."""
    tails = [response[-TAIL_TOKENS:] for response in responses]
    return sum(repeated_share(tail) > REPEATED_RESPONSE_SHARE for tail in tails) / len(tails)


def same_share(responses: Sequence[Sequence[int]]) -> float:
    """Share of the most frequent response among all of one prompt's: 1 is a collapsed policy."""
    return max(Counter(tuple(response) for response in responses).values()) / len(responses)


def check_gap(gap_nats: float, *, largest: float, step: int) -> None:
    """Refuse to go on when the sampler's probabilities are not the trainer's.

    Measured on the first update after a rollout, where both hold the same weights: any gap is a
    difference in arithmetic, and it biases every importance ratio.

    Raises:
        StageFailedError: the mean gap is above `largest`, or not a number.
    """
    if not gap_nats <= largest:
        raise StageFailedError(
            f"step {step}: sampled and trained log-probabilities differ by {gap_nats:.3g} nats per "
            f"token on equal weights; accepted: up to largest_gap_nats = {largest}. Check that "
            "sampler and trainer use the same head precision and temperature"
        )


def check_loops(share: float, *, largest: float, step: int) -> None:
    """Refuse to go on when most responses end in a loop: there is nothing left to reinforce.

    Raises:
        StageFailedError: more than `largest` of the responses do.
    """
    if share > largest:
        raise StageFailedError(
            f"step {step}: {share:.0%} of the responses end in a loop; accepted: up to "
            f"largest_loop_share = {largest:.0%}. Lower is_weight_max and clip_gradient_norm, or "
            "use normaliser = sample (M1 section 5)"
        )
