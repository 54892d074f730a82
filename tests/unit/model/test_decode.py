"""Choosing tokens, stopping, and refusing bad requests."""

import math
from collections.abc import Sequence

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from m1.infra.errors import InvalidSettingError, PromptTooLongError
from m1.model.config import ModelConfig
from m1.model.decode import Decoder, Request
from m1.model.decode_network import weight_shapes
from m1.model.sampling import Knobs, Sampling, choose, uniforms, wrap_seed
from m1.model.stop_strings import first_of

SHAPE = ModelConfig(
    num_layers=2, softmax_every=2, hidden_size=16, num_heads=2, head_width=8,
    num_key_value_heads=1, num_experts=2, experts_per_token=1, expert_hidden_size=8,
    vocabulary_size=64, rotary_width=4,
)  # fmt: skip


def weights() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(shape, generator=generator) * 0.2 + (len(shape) == 1)
        for name, shape in weight_shapes(SHAPE).items()
    }


def counter(count: int, *, seed: int = 0) -> torch.Tensor:
    seeds = numpy.full(count, wrap_seed(seed), dtype=numpy.uint64)
    return uniforms(seeds, numpy.arange(count))


def knobs(rows: int, **changed: float) -> Knobs:
    return Knobs.of([Sampling(**changed)] * rows)


def test_uniforms_are_uniform_and_differ_by_seed_and_index() -> None:
    first, second = counter(20_000), counter(20_000, seed=1)

    histogram = torch.histc(first.float(), 20, 0, 1) / 20_000
    assert (histogram - 0.05).abs().max() < 0.006
    assert len(set(first.tolist()) | set(second.tolist())) == 40_000
    assert abs(torch.corrcoef(torch.stack([first, second]))[0, 1].item()) < 0.03


@pytest.mark.parametrize("seed", [-1, 2**64 + 5, 2**80])
def test_any_integer_is_a_seed(seed: int) -> None:
    assert 0 <= counter(1, seed=seed).item() < 1


def test_sampled_frequencies_are_the_probabilities() -> None:
    logits = torch.randn(150, generator=torch.Generator().manual_seed(2))
    rows = 60_000

    tokens, logprobs = choose(logits.expand(rows, -1), knobs(rows, temperature=0.8), counter(rows))

    expected = (logits / 0.8).softmax(-1)
    found = torch.bincount(tokens, minlength=150) / rows
    assert (found - expected).abs().max() < 0.006
    assert torch.allclose(logprobs, expected.log()[tokens], atol=1e-5)


def test_top_k_and_top_p_keep_only_the_head_of_the_distribution() -> None:
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log().expand(2000, -1)

    by_k, _ = choose(logits, knobs(2000, top_k=2), counter(2000))
    by_p, logprobs = choose(logits, knobs(2000, top_p=0.7), counter(2000))
    by_tiny_p, _ = choose(logits, knobs(2000, top_p=1e-6), counter(2000))

    assert set(by_k.tolist()) == {0, 1}
    assert set(by_p.tolist()) == {0, 1}
    assert set(by_tiny_p.tolist()) == {0}
    # what a trainer recomputes: the whole distribution, not the cut one
    assert logprobs[by_p == 0][0].item() == pytest.approx(math.log(0.5), abs=1e-6)


@given(
    uniform=st.floats(0, 1, exclude_max=True),
    possible=st.sets(st.integers(0, 199), min_size=1, max_size=5),
)
@settings(max_examples=100, deadline=None)
def test_impossible_tokens_are_never_chosen(uniform: float, possible: set[int]) -> None:
    logits = torch.full((1, 200), -math.inf)
    logits[0, list(possible)] = 0.0

    tokens, logprobs = choose(logits, knobs(1), torch.tensor([uniform], dtype=torch.float64))

    assert tokens.item() in possible
    assert logprobs.item() == pytest.approx(-math.log(len(possible)), abs=1e-6)


def test_greedy_reports_the_logprob_at_temperature_one() -> None:
    logits = torch.tensor([[1.0, 3.0, 2.0]])

    tokens, logprobs = choose(logits, knobs(1, temperature=0.0), counter(1))

    assert tokens.tolist() == [1]
    assert logprobs.item() == pytest.approx(logits.log_softmax(-1)[0, 1].item(), abs=1e-6)


def test_completion_ends_with_the_first_stop_token() -> None:
    decoder = Decoder(weights(), SHAPE)
    request = Request(prompt_token_ids=[1, 2, 3], max_new_tokens=40, seed=5)
    [free] = decoder.generate([request], Sampling())
    stop = free.token_ids[9]
    place = free.token_ids.index(stop)

    [stopped] = decoder.generate([request], Sampling(stop_token_ids=(stop,)))

    assert stopped.token_ids == free.token_ids[: place + 1]
    assert stopped.logprobs == free.logprobs[: place + 1]
    assert stopped.finish_reason == "stop"
    assert free.finish_reason == "length"


def test_sure_tokens_in_a_row_stop_a_completion() -> None:
    certain = weights()
    certain["output_layer.weight"] = certain["output_layer.weight"] * 1000
    decoder = Decoder(certain, SHAPE)
    request = Request(prompt_token_ids=[1], max_new_tokens=300)
    settings = {"temperature": 0.0, "repetition_probability": 0.5}

    [stopped] = decoder.generate([request], Sampling(repetition_tokens=7, **settings))
    [endless] = decoder.generate([request], Sampling(repetition_tokens=0, **settings))

    sure = [logprob > math.log(0.5) for logprob in endless.logprobs]
    first = next(i for i in range(7, 301) if all(sure[i - 7 : i]))
    assert stopped.finish_reason == "repetition"
    assert len(stopped.token_ids) == first
    assert (len(endless.token_ids), endless.finish_reason) == (300, "length")


def test_unsure_tokens_break_the_row_of_sure_ones() -> None:
    [completion] = Decoder(weights(), SHAPE).generate(
        [Request(prompt_token_ids=[1], max_new_tokens=50)], Sampling(repetition_tokens=2)
    )

    assert max(completion.logprobs) < math.log(0.99)
    assert completion.finish_reason == "length"


def test_no_requests_give_no_completions() -> None:
    assert Decoder(weights(), SHAPE).generate([], Sampling()) == []


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Request(prompt_token_ids=[], max_new_tokens=3), "prompt = 'no tokens'"),
        (Request(prompt_token_ids=[1], max_new_tokens=0), "max_new_tokens = 0"),
        (Request(prompt_token_ids=[64], max_new_tokens=1), "accepted: 0 to 63"),
        (Request(prompt_token_ids=[-1], max_new_tokens=1), "accepted: 0 to 63"),
    ],
)
def test_impossible_requests_are_refused(request_: Request, message: str) -> None:
    with pytest.raises(InvalidSettingError, match=message):
        Decoder(weights(), SHAPE).generate([request_], Sampling())


def test_a_prompt_that_fills_the_window_is_refused_and_a_shorter_one_is_cut_at_it() -> None:
    decoder = Decoder(weights(), SHAPE, window_tokens=12)

    [done] = decoder.generate([Request(prompt_token_ids=[1] * 11, max_new_tokens=5)], Sampling())
    with pytest.raises(PromptTooLongError, match=r"12 tokens.*at most 11 tokens"):
        decoder.generate([Request(prompt_token_ids=[1] * 12, max_new_tokens=5)], Sampling())

    assert (len(done.token_ids), done.finish_reason) == (1, "length")


def test_a_completion_ends_with_the_token_that_completes_a_stop_string() -> None:
    def text_of(ids: Sequence[int]) -> str:
        return "".join(chr(ord("a") + number % 26) for number in ids)

    decoder = Decoder(weights(), SHAPE, text_of=text_of)
    request = Request(prompt_token_ids=[1, 2, 3], max_new_tokens=60, seed=5)
    [free] = decoder.generate([request], Sampling())
    text = text_of(free.token_ids)
    string = text[20:23]

    [stopped] = decoder.generate([request], Sampling(stop_strings=("nothing of this", string)))

    assert text_of(stopped.token_ids) == text[: text.index(string) + 3]
    assert (stopped.finish_reason, stopped.stop_string) == ("stop", string)


def test_stop_strings_without_a_tokenizer_are_refused() -> None:
    request = Request(prompt_token_ids=[1], max_new_tokens=1)

    with pytest.raises(InvalidSettingError, match="stop_strings"):
        Decoder(weights(), SHAPE).generate([request], Sampling(stop_strings=("x",)))


@given(
    text=st.text("ab", max_size=30),
    strings=st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3),
)
def test_the_stop_string_that_begins_first_is_found(text: str, strings: list[str]) -> None:
    found = first_of(strings, text)

    begins = [at for at in range(len(text)) if any(text.startswith(s, at) for s in strings)]
    if not begins:
        assert found is None
    else:
        assert found is not None
        assert found[1] == begins[0]
        assert text.startswith(found[0], begins[0])


def test_alternatives_are_the_most_likely_tokens_with_their_logprobs() -> None:
    [done] = Decoder(weights(), SHAPE).generate(
        [Request(prompt_token_ids=[1, 2], max_new_tokens=4)],
        Sampling(temperature=0, top_logprobs=3),
    )

    for token, logprob, top in zip(done.token_ids, done.logprobs, done.top_logprobs, strict=True):
        assert top[0] == (token, pytest.approx(logprob, abs=1e-6))
        assert [value for _, value in top] == sorted((value for _, value in top), reverse=True)
        assert len(top) == 3


def test_a_row_that_is_not_cut_is_chosen_as_if_no_row_were() -> None:
    logits = torch.randn(3, 200, generator=torch.Generator().manual_seed(1))
    mixed = Knobs.of([Sampling(top_p=0.3), Sampling(), Sampling(top_k=5, temperature=0.0)])
    uniform = counter(3, seed=4)

    tokens, logprobs = choose(logits, mixed, uniform)

    alone, alone_logprobs = choose(logits[1:2], knobs(1), uniform[1:2])
    assert (tokens[1], logprobs[1]) == (alone[0], alone_logprobs[0])
    assert tokens[2] == logits[2].argmax()


@pytest.mark.parametrize(
    "changed",
    [
        {"temperature": -1.0}, {"temperature": math.nan}, {"top_k": -1}, {"top_p": 0.0},
        {"repetition_tokens": -1}, {"repetition_probability": 1.0}, {"top_logprobs": 21},
        {"stop_strings": ("",)},
    ],
    ids=str,
)  # fmt: skip
def test_impossible_sampling_is_refused(changed: dict) -> None:
    with pytest.raises(InvalidSettingError, match=next(iter(changed))):
        Sampling(**changed)


def test_part_of_a_model_is_refused_by_name() -> None:
    partial = weights()
    partial["output_layer.weight"] = partial["output_layer.weight"][:32]
    request = Request(prompt_token_ids=[1], max_new_tokens=1)

    with pytest.raises(ValueError, match=r"output_layer.weight has shape \(32, 16\)"):
        Decoder(partial, SHAPE).generate([request], Sampling())


def test_names_of_wrapped_models_are_understood() -> None:
    wrapped = {f"module.module.{name}": weight for name, weight in weights().items()}
    request = Request(prompt_token_ids=[1, 2], max_new_tokens=5)

    found = Decoder(wrapped, SHAPE).generate([request], Sampling())

    assert found == Decoder(weights(), SHAPE).generate([request], Sampling())


def test_bf16_weights_keep_an_fp32_state_and_fp32_logits() -> None:
    low = {name: weight.bfloat16() for name, weight in weights().items()}
    request = Request(prompt_token_ids=[1, 2, 3], max_new_tokens=10)

    [found] = Decoder(low, SHAPE).generate([request], Sampling(temperature=0))

    assert len(found.token_ids) == 10
    assert all(-math.log(64) <= logprob <= 0 for logprob in found.logprobs)
