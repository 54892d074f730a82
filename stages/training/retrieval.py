"""Retrieval by depth and length: does the model use what stands far back in its window?

A needle, `key 4821 is 7390`, is laid into held-out text at some depth, and the window ends with
`key 4821 is`. Two numbers per cell, averaged over trials:

    gain_nats   how much likelier the right digits are than in the same window whose needle names
                other digits, so that knowing the format earns nothing
    exact       share of trials in which every right digit is also the most likely one

With `distractors` further needles under other keys lie at random depths: the harder probe, since
the plain one saturates (RULER; facts sheet section 7). A model too small to retrieve shows a gain
near zero: the grid is a measurement, not a pass mark.

Shape letters: B windows, T tokens.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from m1.data_recipes.tokenizer import Tokenizer
from m1.model.spec import HybridModel, forward_logits

KEY_DIGITS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """One window: its tokens end with the right digits, of which there are `answer_tokens`."""

    token_ids: tuple[int, ...]
    answer_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One cell of the grid."""

    length_tokens: int
    depth: float
    distractors: int
    gain_nats: float
    exact: float


def needle(key: str, value: str) -> str:
    """The sentence that is hidden."""
    return f"\nkey {key} is {value}\n"


def make_probes(
    tokenizer: Tokenizer,
    haystack: Sequence[int],
    *,
    depth: float,
    distractors: int,
    rng: random.Random,
) -> tuple[Probe, Probe]:
    """The probe, and its control whose needle names other digits; both of the haystack's length.

    Raises:
        ValueError: the haystack is too short for needles and question.
    """
    key, value, other, *rest = _distinct_numbers(rng, 3 + 2 * distractors)
    places = [depth, *(rng.random() for _ in range(distractors))]
    facts = list(zip(rest[::2], rest[1::2], strict=True))
    question, answer = tokenizer.encode(f"\nkey {key} is "), tokenizer.encode(value)
    probes = [
        _lay(tokenizer, haystack, [(key, told), *facts], places, [*question, *answer])
        for told in (value, other)
    ]
    first, control = (Probe(token_ids=ids, answer_tokens=len(answer)) for ids in probes)
    return first, control


def _distinct_numbers(rng: random.Random, count: int) -> list[str]:
    return [str(n) for n in rng.sample(range(10 ** (KEY_DIGITS - 1), 10**KEY_DIGITS), count)]


def _lay(
    tokenizer: Tokenizer,
    haystack: Sequence[int],
    facts: Sequence[tuple[str, str]],
    places: Sequence[float],
    ending: Sequence[int],
) -> tuple[int, ...]:
    needles = [tokenizer.encode(needle(key, value)) for key, value in facts]
    room = len(haystack) - len(ending) - sum(len(ids) for ids in needles)
    if room < 1:
        raise ValueError(f"a haystack of {len(haystack)} tokens holds no {len(facts)} needles")
    tokens, taken = [], 0
    for place, ids in sorted(zip(places, needles, strict=True), key=lambda pair: pair[0]):
        until = round(place * room)
        tokens += [*haystack[taken:until], *ids]
        taken = until
    return (*tokens, *haystack[taken:room], *ending)


@torch.no_grad()
def score(model: HybridModel, probe: Probe) -> tuple[float, bool]:
    """Nats of the right digits, and whether each of them is the most likely token."""
    device = next(model.parameters()).device
    tokens_1T = torch.tensor([probe.token_ids], device=device)
    logits_AV: Tensor = forward_logits(model, tokens_1T[:, :-1])[0, -probe.answer_tokens :].float()
    targets_A = tokens_1T[0, -probe.answer_tokens :]
    nats = torch.nn.functional.cross_entropy(logits_AV, targets_A, reduction="sum")
    return float(nats), bool((logits_AV.argmax(-1) == targets_A).all())


def measure_cell(
    model: HybridModel,
    tokenizer: Tokenizer,
    haystacks: Sequence[Sequence[int]],
    *,
    depth: float,
    distractors: int,
    seed: str,
) -> Cell:
    """One cell, a trial per haystack; all haystacks have the cell's length."""
    gains, exact = [], []
    for number, haystack in enumerate(haystacks):
        rng = random.Random(f"{seed}/{number}")  # noqa: S311  (not a secret)
        probe, control = make_probes(
            tokenizer, haystack, depth=depth, distractors=distractors, rng=rng
        )
        nats, is_exact = score(model, probe)
        gains.append(score(model, control)[0] - nats)
        exact.append(is_exact)
    return Cell(
        length_tokens=len(haystacks[0]),
        depth=depth,
        distractors=distractors,
        gain_nats=sum(gains) / len(gains),
        exact=sum(exact) / len(exact),
    )
