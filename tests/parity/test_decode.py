"""The sampler computes what the slow reference and the training forward compute."""

import pytest
import torch

from m1.model.config import ModelConfig
from m1.model.decode import Completion, Decoder, Request
from m1.model.decode_network import Chunk, DecodeNetwork, RowState, weight_shapes
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
MANY_EXPERTS = SHAPE.model_copy(update={"num_experts": 12, "experts_per_token": 3})


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


@pytest.mark.parametrize("config", [SHAPE, MANY_EXPERTS], ids=["dense", "routed"])
@pytest.mark.parametrize("sizes", [[40], [1] * 40, [7, 1, 30, 2]], ids=["whole", "single", "mixed"])
def test_any_chunking_gives_the_reference_logits(config: ModelConfig, sizes: list[int]) -> None:
    weights = random_weights(config)
    tokens = torch.randint(
        0, config.vocabulary_size, (2, 40), generator=torch.Generator().manual_seed(3)
    )
    network = DecodeNetwork(weights, config, rotary_base=config.rotary_base)
    state = RowState(config, rows=2, weight=weights["output_layer.weight"])

    pieces, start = [], 0
    for size in sizes:
        positions = torch.arange(start, start + size).expand(2, -1)
        chunk = Chunk(
            first_row=0, positions_BC=positions, counts_B=None, cached_tokens=start + size
        )
        pieces.append(network.hidden(tokens[:, start : start + size], chunk, state))
        start += size
    logits = network.logits(torch.cat(pieces, 1).flatten(0, 1)).view(2, 40, -1)

    exact = {name: weight.double() for name, weight in weights.items()}
    expected = reference_logits(exact, config, tokens)
    assert (logits.double() - expected).abs().max() < 1e-5 * expected.std()


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
