"""pass@k against counting every choice; needles that lie where they should."""

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from m1.data_recipes.tokenizer import Tokenizer, train_tokenizer
from m1.stages.evaluate import around_reinforcement
from m1.stages.training.pass_at_k import pass_at_k, powers_of_two
from m1.stages.training.retrieval import make_probes


@given(st.lists(st.integers(0, 5), min_size=1, max_size=8), st.integers(1, 5))
def test_pass_at_k_is_the_share_of_all_choices_of_k_samples_that_hold_a_right_one(counts, k):
    shares = []
    for count in counts:
        choices = list(itertools.combinations([True] * count + [False] * (5 - count), k))
        shares.append(sum(any(choice) for choice in choices) / len(choices))

    answer = pass_at_k(counts, samples=5, k=k)

    assert answer.value == pytest.approx(sum(shares) / len(shares))
    assert answer.low - 1e-9 <= answer.value <= answer.high + 1e-9


def test_the_interval_of_more_problems_is_narrower():
    few, many = pass_at_k([0, 1] * 8, samples=1, k=1), pass_at_k([0, 1] * 800, samples=1, k=1)
    assert many.high - many.low < 0.2 * (few.high - few.low)


@pytest.mark.parametrize(("counts", "k"), [([], 1), ([1], 0), ([1], 3), ([3], 1), ([-1], 1)])
def test_impossible_counts_are_refused(counts, k):
    with pytest.raises(ValueError, match="accepted"):
        pass_at_k(counts, samples=2, k=k)


def test_powers_of_two_end_with_the_limit():
    assert powers_of_two(6) == [1, 2, 4, 6]
    assert powers_of_two(4) == [1, 2, 4]
    assert powers_of_two(1) == [1]


def test_pass_at_k_is_asked_for_before_and_after_reinforcement():
    names = ["pretrain", "sft", "extend-1m", "reinforce-40k", "reinforce-80k"]
    assert around_reinforcement(names) == {"extend-1m", "reinforce-40k", "reinforce-80k"}
    assert around_reinforcement(["pretrain", "sft"]) == set()


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Tokenizer:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    texts = [f"def key_{n}(value):\n    return value is {n}\n" for n in range(400)]
    train_tokenizer(texts, path, vocabulary_size=512, seed=1)
    return Tokenizer.load(path)


@pytest.mark.parametrize("depth", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("distractors", [0, 3])
def test_a_probe_asks_for_the_fact_that_lies_at_its_depth(tokenizer, depth, distractors):
    haystack = [5000 + n for n in range(400)]  # no token of the tokenizer: easy to tell apart
    probe, control = make_probes(
        tokenizer, haystack, depth=depth, distractors=distractors, rng=random.Random(1)
    )

    assert len(probe.token_ids) == len(control.token_ids) == len(haystack)
    text = tokenizer.decode([token for token in probe.token_ids if token < 5000])
    key, value = text.strip().rsplit("key ", 1)[1].split(" is ")
    assert text.count(f"key {key} is {value}") == 2  # the needle and the question
    assert text.count(" is ") == 2 + distractors
    straw = [token for token in probe.token_ids if token >= 5000]
    assert straw == haystack[: len(straw)]
    needle = tokenizer.encode(f"\nkey {key} is {value}\n")
    starts = [
        i for i in range(len(straw) + 200) if list(probe.token_ids[i : i + len(needle)]) == needle
    ]
    before = [sum(t >= 5000 for t in probe.token_ids[:start]) for start in starts]
    assert round(depth * len(straw)) in before
    different = [a for a, b in zip(probe.token_ids, control.token_ids, strict=True) if a != b]
    assert 1 <= len(different) <= probe.answer_tokens  # only the digits of the needle differ


def test_a_haystack_too_short_is_refused(tokenizer):
    with pytest.raises(ValueError, match="holds no"):
        make_probes(tokenizer, [1] * 20, depth=0.5, distractors=3, rng=random.Random(1))
