"""The reference itself, checked against closed forms and against the training kernels."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from m1.model.config import ModelConfig
from m1.model.decode_network import weight_shapes
from m1.model.reference import (
    experts,
    masked_softmax_attention,
    recurrent_lightning_attention,
    reference_logits,
    root_mean_square_norm,
    rotate,
    route,
)
from m1.model.slopes import slopes

SHAPE = ModelConfig(
    num_layers=4, softmax_every=4, hidden_size=16, num_heads=4, head_width=8,
    num_key_value_heads=2, num_experts=4, experts_per_token=2, expert_hidden_size=12,
    vocabulary_size=64, rotary_width=4, rotary_base=100.0,
)  # fmt: skip


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def qkv(batch: int, tokens: int, heads: int, width: int) -> list[torch.Tensor]:
    return [random(batch, tokens, heads, width, seed=seed) for seed in range(3)]


def test_recurrence_is_the_sum_of_decayed_products() -> None:
    q, k, v = qkv(2, 12, 4, 3)
    rates = torch.tensor([0.9, 0.3, 0.01, 1e-5], dtype=torch.float64)

    output, _ = recurrent_lightning_attention(q, k, v, rates)

    distance = (torch.arange(12)[:, None] - torch.arange(12)).double()
    decay = torch.exp(-rates[:, None, None] * distance) * (distance >= 0)
    expected = torch.einsum("bihw,bjhw,hij,bjhu->bihu", q, k, decay, v)
    assert torch.allclose(output, expected, rtol=1e-12, atol=1e-12)


def test_recurrence_continues_from_its_own_state() -> None:
    q, k, v = qkv(1, 10, 2, 4)
    rates = torch.tensor([0.5, 0.1], dtype=torch.float64)
    whole, end = recurrent_lightning_attention(q, k, v, rates)

    first, state = recurrent_lightning_attention(q[:, :6], k[:, :6], v[:, :6], rates)
    second, last = recurrent_lightning_attention(
        q[:, 6:], k[:, 6:], v[:, 6:], rates, initial_state_BHWW=state
    )

    assert torch.equal(torch.cat([first, second], 1), whole)
    assert torch.equal(last, end)


def test_documents_are_computed_as_if_alone() -> None:
    config = SHAPE
    generator = torch.Generator().manual_seed(1)
    weights = {
        name: torch.randn(shape, generator=generator, dtype=torch.float64) * 0.3
        for name, shape in weight_shapes(config).items()
    }
    tokens = torch.randint(0, 64, (1, 20), generator=generator)
    ids = torch.tensor([[0] * 7 + [1] * 4 + [5] * 9])

    packed = reference_logits(weights, config, tokens, document_ids_BT=ids)

    alone = [reference_logits(weights, config, piece) for piece in tokens.split([7, 4, 9], 1)]
    assert torch.allclose(packed, torch.cat(alone, 1), rtol=1e-9, atol=1e-9)


def test_masked_attention_equals_the_library_on_one_document() -> None:
    q, k, v = random(2, 9, 4, 8), random(2, 9, 2, 8, seed=1), random(2, 9, 2, 8, seed=2)

    ours = masked_softmax_attention(q, k, v)

    theirs = functional.scaled_dot_product_attention(
        *(x.transpose(1, 2) for x in (q, k, v)), is_causal=True, enable_gqa=True
    ).transpose(1, 2)
    assert torch.allclose(ours, theirs, atol=1e-12)


def test_rotation_keeps_the_passed_elements_and_depends_on_distance_only() -> None:
    x = random(1, 1, 1, 8).expand(1, 6, 1, 8)

    turned = rotate(x, rotary_width=4, rotary_base=100.0)[0, :, 0]

    products = turned @ turned.T
    assert torch.equal(turned[:, 4:], x[0, :, 0, 4:])
    assert torch.allclose(products[0, 2], products[3, 5])
    assert not torch.allclose(products[0, 2], products[0, 3])


def test_routing_equals_softmax_over_all_then_renormalised() -> None:
    x, router = random(10, 6), random(5, 6, seed=1)

    probabilities, chosen = route(x, router, 2)

    everything = (x @ router.T).softmax(-1)
    best, places = everything.topk(2, -1)
    assert torch.equal(chosen, places)
    assert torch.allclose(probabilities, best / best.sum(-1, keepdim=True))


def test_identical_experts_make_the_mixture_one_expert() -> None:
    x, gate_up, down = random(7, 6), random(1, 10, 6, seed=1), random(1, 6, 5, seed=2)
    probabilities, chosen = route(x, random(4, 6, seed=3), 2)

    mixed = experts(x, probabilities, chosen, (gate_up.expand(4, -1, -1), down.expand(4, -1, -1)))

    gate, up = (x @ gate_up[0].T).chunk(2, -1)
    assert torch.allclose(mixed, (functional.silu(gate) * up) @ down[0].T)


def test_norm_equals_the_library() -> None:
    x, weight = random(3, 5, 8), random(8, seed=1)

    ours = root_mean_square_norm(x, weight, 1e-5)

    assert torch.allclose(ours, functional.rms_norm(x, (8,), weight, 1e-5))


@pytest.mark.parametrize(
    ("num_heads", "expected"),
    [(4, [2**-2, 2**-4, 2**-6, 2**-8]), (6, [2**-2, 2**-4, 2**-6, 2**-8, 2**-1, 2**-3])],
)
def test_slopes_follow_the_head_and_fall_with_the_layer(
    num_heads: int, expected: list[float]
) -> None:
    config = SHAPE.model_copy(update={"num_heads": num_heads})

    first, last = slopes(config, 0), slopes(config, 3)

    base = torch.tensor(expected)
    assert torch.allclose(first, base * (1 + 1e-5), rtol=1e-6)
    assert torch.allclose(last, base * 1e-5, rtol=1e-4)


def test_slopes_of_the_released_model_remember_as_long_as_published() -> None:
    # facts sheet 1.3: e-fold memory of head 63 is 256 tokens in layer 0, 20,208 in layer 78
    assert 1 / slopes(ModelConfig(), 0)[63].item() == pytest.approx(256, rel=1e-3)
    assert 1 / slopes(ModelConfig(), 78)[63].item() == pytest.approx(20_208, rel=1e-3)


@given(cuts=st.lists(st.integers(1, 89), max_size=4), with_state=st.booleans())
@settings(max_examples=15, deadline=None)
@pytest.mark.filterwarnings("ignore::UserWarning:megatron", "ignore::DeprecationWarning")
def test_training_kernel_equals_the_recurrence(cuts: list[int], with_state: bool) -> None:
    from m1.model.lightning_attention import lightning_attention

    q, k, v = qkv(2, 90, 2, 4)
    rates = torch.tensor([0.4, 1e-3])
    ids = torch.zeros(2, 90, dtype=torch.long)
    for cut in cuts:
        ids[:, cut:] += 1
    state = random(2, 2, 4, 4, seed=7) if with_state else None

    found, end = lightning_attention(
        *(x.float().transpose(1, 2) for x in (q, k, v)),
        rates,
        document_ids_BT=ids,
        initial_state_BHWW=None if state is None else state.float(),
    )
    expected, last = recurrent_lightning_attention(
        q, k, v, rates, document_ids_BT=ids, initial_state_BHWW=state
    )

    assert (found.transpose(1, 2) - expected).abs().max() < 1e-4
    assert (end - last).abs().max() < 1e-4
