"""The sampler computes what the slow reference and the training forward compute."""

from itertools import pairwise

import numpy
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from m1.model.config import ModelConfig
from m1.model.decode import Completion, Decoder, Request
from m1.model.decode_network import DecodeNetwork, weight_shapes
from m1.model.decode_state import Chunk, RowState
from m1.model.reference import reference_logits
from m1.model.sampling import Sampling

SHAPE = ModelConfig(
    num_layers=4,
    softmax_every=2,
    hidden_size=32,
    num_heads=4,
    head_width=8,
    num_key_value_heads=2,
    num_experts=4,
    experts_per_token=2,
    expert_hidden_size=24,
    vocabulary_size=97,
    rotary_width=4,
    rotary_base=1000.0,
)
MANY_EXPERTS = {"num_experts": 12, "experts_per_token": 3}


def random_weights(config: ModelConfig, *, seed: int = 0) -> dict[str, torch.Tensor]:
    """Weights that make every part matter: gains around one, matrices of std 0.15."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in weight_shapes(config).items():
        values = torch.randn(shape, generator=generator) * (0.15 if len(shape) > 1 else 0.1)
        weights[name] = values + 1.0 if len(shape) == 1 else values
    return weights


def random_prompts(count: int, longest: int, *, seed: int = 1) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, longest + 1, (count,), generator=generator).tolist()
    vocabulary = SHAPE.vocabulary_size
    return [torch.randint(0, vocabulary, (n,), generator=generator).tolist() for n in lengths]


def truth(weights: dict[str, torch.Tensor], config: ModelConfig, tokens: list[int]) -> torch.Tensor:
    exact = {name: weight.double() for name, weight in weights.items()}
    return reference_logits(exact, config, torch.tensor([tokens]))[0]


def chunked_logits(
    weights: dict[str, torch.Tensor], config: ModelConfig, tokens: torch.Tensor, sizes: list[int]
) -> torch.Tensor:
    """Logits [B, T, V] by the decoder's network, `sizes` tokens of every row at a time."""
    network = DecodeNetwork(weights, config, rotary_base=config.rotary_base)
    state = RowState(config, rows=len(tokens), weight=weights["output_layer.weight"])
    pieces, start = [], 0
    for size in sizes:
        rows = numpy.ones(len(tokens), dtype=numpy.int64)
        chunk = Chunk.of(0, rows * start, rows * size, torch.device("cpu"))
        packed = tokens[:, start : start + size].flatten()
        pieces.append(network.hidden(packed, [chunk], state).unflatten(0, (len(tokens), size)))
        start += size
    return network.logits(torch.cat(pieces, 1))


@given(
    cuts=st.sets(st.integers(1, 39), max_size=12),
    changed=st.sampled_from(
        [{}, {"num_experts": 12, "experts_per_token": 3}, {"softmax_every": 9}]
    ),
    seed=st.integers(0, 3),
)
@example(cuts=set(range(1, 40)), changed={}, seed=0)
@settings(max_examples=25, deadline=None)
def test_any_chunking_gives_the_reference_logits(cuts: set[int], changed: dict, seed: int) -> None:
    config = SHAPE.model_copy(update=changed)
    weights = random_weights(config, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, config.vocabulary_size, (2, 40), generator=generator)
    edges = [0, *sorted(cuts), 40]

    logits = chunked_logits(weights, config, tokens, [b - a for a, b in pairwise(edges)])

    exact = {name: weight.double() for name, weight in weights.items()}
    expected = reference_logits(exact, config, tokens)
    assert (logits.double() - expected).abs().max() < 1e-5


def test_rows_of_unequal_chunks_do_not_disturb_one_another() -> None:
    weights = random_weights(SHAPE)
    network = DecodeNetwork(weights, SHAPE, rotary_base=SHAPE.rotary_base)
    state = RowState(SHAPE, rows=5, weight=weights["output_layer.weight"])
    tokens = torch.randint(0, 97, (5, 30), generator=torch.Generator().manual_seed(3))
    seen, found = numpy.zeros(5, dtype=numpy.int64), [[] for _ in range(5)]

    # two groups of rows per pass, as when some write while others read
    for counts in ([1, 1, 7, 3, 12], [1, 1, 4, 20, 1], [1, 1, 9, 2, 5]):
        count = numpy.array(counts)
        chunks = [
            Chunk.of(0, seen[:2], count[:2], torch.device("cpu")),
            Chunk.of(2, seen[2:], count[2:], torch.device("cpu")),
        ]
        packed = [tokens[row, seen[row] : seen[row] + counts[row]] for row in range(5)]
        hidden = network.hidden(torch.cat(packed), chunks, state).split(counts)
        for row, piece in enumerate(hidden):
            found[row].append(piece)
        seen += count

    for row in range(5):
        logits = network.logits(torch.cat(found[row]))
        expected = truth(weights, SHAPE, tokens[row, : seen[row]].tolist())
        assert (logits.double() - expected).abs().max() < 1e-5


@pytest.mark.parametrize("prefill_chunk_tokens", [1, 5, 128])
def test_logprobs_of_ragged_prompts_are_those_of_the_reference(prefill_chunk_tokens: int) -> None:
    weights, prompts = random_weights(SHAPE), random_prompts(9, 30)
    decoder = Decoder(weights, SHAPE, prefill_chunk_tokens=prefill_chunk_tokens)
    requests = [
        Request(prompt_token_ids=prompt, max_new_tokens=5 + 7 * (number % 3), seed=number)
        for number, prompt in enumerate(prompts)
    ]

    completions = decoder.generate(requests, Sampling(temperature=0.7), max_batch=4)

    for request, completion in zip(requests, completions, strict=True):
        whole = [*request.prompt_token_ids, *completion.token_ids]
        logprobs = (truth(weights, SHAPE, whole) / 0.7).log_softmax(-1)
        first = len(request.prompt_token_ids) - 1
        expected = [
            logprobs[first + i, token].item() for i, token in enumerate(completion.token_ids)
        ]
        assert len(completion.token_ids) == request.max_new_tokens
        assert completion.finish_reason == "length"
        assert completion.logprobs == pytest.approx(expected, abs=2e-5)


def test_greedy_takes_the_reference_argmax() -> None:
    weights = random_weights(SHAPE)

    [completion] = Decoder(weights, SHAPE).generate(
        [Request(prompt_token_ids=[5, 6, 7], max_new_tokens=12)], Sampling(temperature=0)
    )

    logits = truth(weights, SHAPE, [5, 6, 7, *completion.token_ids])
    assert list(completion.token_ids) == logits[2:-1].argmax(-1).tolist()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_batch_composition_does_not_change_a_request(temperature: float) -> None:
    weights, prompts = random_weights(SHAPE), random_prompts(20, 40)
    decoder, sampling = Decoder(weights, SHAPE), Sampling(temperature=temperature)
    requests = [
        Request(prompt_token_ids=prompt, max_new_tokens=3 + number, seed=100 + number)
        for number, prompt in enumerate(prompts)
    ]

    alone = [decoder.generate([request], sampling)[0].token_ids for request in requests]

    for max_batch in (3, 8, 20):
        together = decoder.generate(requests, sampling, max_batch=max_batch)
        assert [completion.token_ids for completion in together] == alone
    backwards: list[Completion] = decoder.generate(requests[::-1], sampling, max_batch=5)
    assert [completion.token_ids for completion in backwards[::-1]] == alone


def test_equal_prompts_are_read_once_and_answered_as_if_alone() -> None:
    weights = random_weights(SHAPE)
    prompts = [*random_prompts(2, 40), [5]]  # of one token nothing is left to read
    decoder, sampling = Decoder(weights, SHAPE, prefill_chunk_tokens=7), Sampling()
    requests = [
        Request(prompt_token_ids=prompts[number % 3], max_new_tokens=4 + number, seed=number)
        for number in range(15)
    ]

    alone = [decoder.generate([request], sampling)[0].token_ids for request in requests]

    for max_batch in (2, 6, 15):
        together = decoder.generate(requests, sampling, max_batch=max_batch)
        assert [completion.token_ids for completion in together] == alone


def test_each_request_has_its_own_sampling() -> None:
    weights, prompts = random_weights(SHAPE), random_prompts(6, 20)
    decoder = Decoder(weights, SHAPE)
    samplings = [
        Sampling(temperature=0), Sampling(), Sampling(temperature=0.6), Sampling(top_k=3),
        Sampling(top_p=0.5), Sampling(temperature=1.3, top_k=20, top_p=0.8, top_logprobs=2),
    ]  # fmt: skip
    requests = [
        Request(prompt_token_ids=prompt, max_new_tokens=25, seed=number)
        for number, prompt in enumerate(prompts)
    ]

    engine = decoder.engine(max_batch=4)
    tickets = [engine.submit(*pair) for pair in zip(requests, samplings, strict=True)]
    together: dict[int, Completion] = {}
    while not engine.is_idle:
        together.update(engine.step())

    for ticket, request, sampling in zip(tickets, requests, samplings, strict=True):
        [alone] = decoder.generate([request], sampling)
        assert together[ticket].token_ids == alone.token_ids
        assert len(together[ticket].top_logprobs) == (25 if sampling.top_logprobs else 0)


def test_a_cancelled_request_leaves_the_others_as_they_were() -> None:
    weights, prompts = random_weights(SHAPE), random_prompts(4, 30)
    decoder, sampling = Decoder(weights, SHAPE, prefill_chunk_tokens=8), Sampling()
    requests = [
        Request(prompt_token_ids=prompts[number // 2], max_new_tokens=12, seed=number)
        for number in range(8)  # pairs share a prompt
    ]
    alone = [decoder.generate([request], sampling)[0] for request in requests]

    for when in (0, 1, 2, 6):
        engine = decoder.engine(max_batch=6)
        tickets = [engine.submit(request, sampling) for request in requests]
        done: dict[int, Completion] = {}
        for _ in range(when):
            done |= engine.step()
        for ticket in (tickets[0], tickets[3], tickets[7]):
            engine.cancel(ticket)
        while not engine.is_idle:
            done |= engine.step()
        assert sorted(done) == [tickets[number] for number in (1, 2, 4, 5, 6)]
        assert all(done[t].token_ids == alone[t].token_ids for t in done)


def test_the_next_generate_sees_weights_updated_in_place() -> None:
    weights = random_weights(SHAPE)
    decoder = Decoder(weights, SHAPE)
    request = Request(prompt_token_ids=[1, 2], max_new_tokens=6)
    before = decoder.generate([request], Sampling(temperature=0))

    for name, changed in random_weights(SHAPE, seed=9).items():
        weights[name].copy_(changed)
    after = decoder.generate([request], Sampling(temperature=0))

    fresh = Decoder(random_weights(SHAPE, seed=9), SHAPE).generate(
        [request], Sampling(temperature=0)
    )
    assert after == fresh
    assert after != before


def test_rotary_base_of_an_extended_model_is_used() -> None:
    weights = random_weights(SHAPE)
    prompt = random_prompts(1, 60)[0] * 3

    [completion] = Decoder(weights, SHAPE, rotary_base=50_000.0).generate(
        [Request(prompt_token_ids=prompt, max_new_tokens=1)], Sampling(temperature=0)
    )

    exact = {name: weight.double() for name, weight in weights.items()}
    logits = reference_logits(exact, SHAPE, torch.tensor([prompt]), rotary_base=50_000.0)[0, -1]
    assert completion.logprobs[0] == pytest.approx(logits.log_softmax(-1).max().item(), abs=2e-5)


# megatron-core says on import which optional accelerators are absent
@pytest.mark.filterwarnings("ignore::UserWarning:megatron", "ignore::DeprecationWarning")
def test_decoder_agrees_with_the_training_forward() -> None:
    from m1.model.config import ParallelLayout
    from m1.model.process_groups import process_groups
    from m1.model.spec import BuildOptions, build_model, forward_logits

    layout = ParallelLayout()
    options = BuildOptions(rotary_base=SHAPE.rotary_base, window_tokens=64, seed=3)
    with process_groups(layout, seed=0):
        model = build_model(SHAPE, layout, options)
        requests = [Request(prompt_token_ids=p, max_new_tokens=8) for p in random_prompts(4, 30)]
        completions = Decoder(model, SHAPE).generate(requests, Sampling())
        for request, completion in zip(requests, completions, strict=True):
            whole = torch.tensor([[*request.prompt_token_ids, *completion.token_ids]])
            with torch.no_grad():
                logprobs = forward_logits(model, whole)[0].log_softmax(-1)
            first = len(request.prompt_token_ids) - 1
            expected = [logprobs[first + i, t].item() for i, t in enumerate(completion.token_ids)]
            assert completion.logprobs == pytest.approx(expected, abs=1e-5)
