"""Every Triton kernel under Triton's interpreter (or on a GPU) against slow, obvious arithmetic.

The interpreter's bf16 products are wrong, so bf16 is left to `benchmarks/kernels.py` on a GPU.

Shape letters: B batch, T tokens, H heads, W head width, R rows, V vocabulary, D hidden, F features.
"""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

triton = pytest.importorskip("triton")
OutOfResources = triton.runtime.errors.OutOfResources

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # then interpreted: see conftest.py

from m1.model import gated_norm as norm_twin  # noqa: E402
from m1.model import head_loss  # noqa: E402
from m1.model.kernels import (  # noqa: E402
    gated_norm,
    head_rows,
    lightning,
    lightning_launch,
    swiglu,
)
from m1.model.reference import recurrent_lightning_attention  # noqa: E402

SLOPES = [0.9, 0.05, 0.3]
TOLERANCE = {torch.float32: 2e-6, torch.float16: 1e-3}


def random(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(DEVICE)


def distance(found: Tensor, expected: Tensor) -> float:
    return float((found.detach().double() - expected.detach()).norm() / expected.detach().norm())


def close(found: Tensor, expected: Tensor, dtype: torch.dtype = torch.float32) -> None:
    assert distance(found, expected) < TOLERANCE[dtype]


def documents(length: int, batch: int) -> Tensor:
    """Ids of documents of 1, 1, 2, 3, 5, ... tokens, shifted from row to row."""
    lengths = [1, 1, 2, 3, 5, 8, 13, 21, 70, length]
    row = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    return torch.stack([row[shift : shift + length] for shift in range(batch)]).to(DEVICE)


def attention_and_gradients(
    run: object, x: list[Tensor], state: Tensor | None, d: tuple[Tensor, Tensor]
) -> list[Tensor]:
    """Output, final state and the gradients of every input."""
    leaves = [tensor.detach().clone().requires_grad_() for tensor in x]
    state = None if state is None else state.detach().clone().requires_grad_()
    output, final = run(leaves, state)  # type: ignore[operator]
    torch.autograd.backward([output, final], [d[0].to(output), d[1].to(final)])
    grads = [leaf.grad for leaf in [*leaves, *([] if state is None else [state])]]
    return [output.detach(), final.detach(), *grads]


def by_recurrence(x: list[Tensor], slopes: Tensor, ids: Tensor | None, state: Tensor | None):
    q, k, v = (tensor.transpose(1, 2) for tensor in x)
    output, final = recurrent_lightning_attention(
        q, k, v, slopes, document_ids_BT=ids, initial_state_BHWW=state
    )
    return output.transpose(1, 2), final


@pytest.mark.parametrize(
    ("length", "heads", "width", "dtype", "is_packed", "has_state"),
    [
        (1, 1, 128, torch.float32, False, True),
        (63, 1, 64, torch.float32, False, False),
        (64, 2, 24, torch.float16, True, True),
        (65, 3, 96, torch.float32, False, True),
        (130, 2, 64, torch.float32, True, True),
        (257, 1, 32, torch.float16, False, True),
        (257, 1, 32, torch.float32, True, False),
    ],
)
def test_attention_and_all_its_gradients_are_the_recurrences(
    length: int, heads: int, width: int, dtype: torch.dtype, is_packed: bool, has_state: bool
) -> None:
    batch = 2 if length == 130 else 1
    shape = (batch, heads, length, width)
    x = [(random(*shape, seed=seed) * 0.3).to(dtype) for seed in range(3)]
    state = random(batch, heads, width, width, seed=3).float() if has_state else None
    slopes = torch.tensor(SLOPES[:heads], device=DEVICE)
    ids = documents(length, batch) if is_packed else None
    d = (random(*shape, seed=4).to(dtype), random(batch, heads, width, width, seed=5))

    found = attention_and_gradients(
        lambda leaves, first: lightning.attention(tuple(leaves), slopes, ids, first),
        x,
        state,
        d,
    )
    expected = attention_and_gradients(
        lambda leaves, first: by_recurrence(leaves, slopes, ids, first),
        [tensor.double() for tensor in x],
        None if state is None else state.double(),
        d,
    )

    for ours, theirs in zip(found, expected, strict=True):
        close(ours, theirs, dtype)


@pytest.mark.parametrize("is_packed", [False, True])
def test_a_sequence_cut_into_segments_for_few_heads_is_the_same(
    monkeypatch: pytest.MonkeyPatch, is_packed: bool
) -> None:
    monkeypatch.setattr(lightning_launch, "FEWEST_SEGMENT_CHUNKS", 1)
    x = [(random(1, 1, 300, 16, seed=seed) * 0.3).float() for seed in range(3)]
    state, slopes = random(1, 1, 16, 16, seed=3).float(), torch.tensor([0.02], device=DEVICE)
    ids = documents(300, 1) if is_packed else None
    d = (random(1, 1, 300, 16, seed=4), random(1, 1, 16, 16, seed=5))
    assert lightning_launch.make_plan(x[0]).segments > 2

    found = attention_and_gradients(
        lambda leaves, first: lightning.attention(tuple(leaves), slopes, ids, first),
        x,
        state,
        d,
    )
    expected = attention_and_gradients(
        lambda leaves, first: by_recurrence(leaves, slopes, ids, first),
        [tensor.double() for tensor in x],
        state.double(),
        d,
    )

    for ours, theirs in zip(found, expected, strict=True):
        close(ours, theirs)


@pytest.mark.parametrize("is_packed", [False, True])
def test_silu_in_the_kernel_is_silu_before_it(is_packed: bool) -> None:
    qkv = random(70, 2, 2, 3 * 24).float()
    slopes = torch.tensor(SLOPES[:2], device=DEVICE)
    ids = documents(70, 2) if is_packed else None
    d = random(2, 2, 70, 24, seed=1)
    ours, theirs = qkv.clone().requires_grad_(), qkv.double().requires_grad_()

    output, final = lightning.silu_attention(ours, slopes, ids, None)
    output.backward(d.float())
    parts = functional.silu(theirs).permute(1, 2, 0, 3).chunk(3, -1)
    expected, last = by_recurrence(list(parts), slopes, ids, None)
    expected.backward(d)

    close(output, expected)
    close(final, last)
    close(ours.grad, theirs.grad)


def test_two_runs_give_the_same_bits() -> None:
    x = [(random(1, 2, 130, 32, seed=seed) * 0.3).float() for seed in range(3)]
    slopes = torch.tensor(SLOPES[:2], device=DEVICE)
    d = (random(1, 2, 130, 32, seed=4), random(1, 2, 32, 32, seed=5))
    first, second = (
        attention_and_gradients(
            lambda leaves, state: lightning.attention(tuple(leaves), slopes, None, state),
            x,
            None,
            d,
        )
        for _ in range(2)
    )
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(("rows", "features"), [(1, 24), (9, 200)])
def test_the_gated_norm_and_its_gradients_are_the_formulas(rows: int, features: int) -> None:
    x = [random(rows, features, seed=seed) for seed in range(2)] + [random(features, seed=2)]
    d = random(rows, features, seed=3)
    ours = [tensor.float().requires_grad_() for tensor in x]
    theirs = [tensor.float().double().requires_grad_() for tensor in x]

    found = gated_norm.gated_norm(*ours, epsilon=1e-5)
    found.backward(d.float())
    scale = torch.rsqrt(theirs[0].square().mean(-1, keepdim=True) + 1e-5)
    expected = theirs[0] * scale * theirs[2] * torch.sigmoid(theirs[1])
    expected.backward(d)

    close(found, expected)
    for one, other in zip(ours, theirs, strict=True):
        close(one.grad, other.grad)


def test_the_gated_norms_twin_agrees() -> None:
    x, gate, weight = random(5, 48).float(), random(5, 48, seed=1).float(), random(48).float()
    twin = norm_twin.gated_norm(x.cpu(), gate.cpu(), weight.cpu(), epsilon=1e-5)
    found = gated_norm.gated_norm(x, gate, weight, epsilon=1e-5)
    torch.testing.assert_close(found.cpu(), twin)


@pytest.mark.parametrize("first", [0, 20])
def test_row_statistics_agree_with_their_twin(first: int) -> None:
    logits, targets = random(7, 50).float(), torch.arange(7, device=DEVICE) * 7
    found = head_rows.statistics(logits, targets, first)
    twin = head_loss._statistics(logits.cpu(), targets.cpu(), first)
    for one, other in zip(found, twin, strict=True):
        torch.testing.assert_close(one.cpu(), other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_gradient_written_over_the_logits_agrees_with_its_twin(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(head_rows, "BLOCK", 16)  # several blocks a row
    logits, targets = random(7, 50).float(), torch.arange(7, device=DEVICE) * 7
    normaliser, scale = logits.logsumexp(1), random(7, seed=1).float()
    twin = head_loss._gradient(logits, targets, normaliser, scale, 3)
    found = head_rows.gradient(logits.clone(), targets, (normaliser, scale), 3, dtype)
    close(found, twin.double(), dtype)


def test_the_two_parts_of_a_split_weight_sum_to_it() -> None:
    weight = random(5, 40).float()
    parts = head_rows.split(weight).float()
    error = (parts[:, :40] + parts[:, 40:] - weight).abs() / weight.abs()
    assert float(error.max()) < 2**-15


def test_the_norm_without_a_gate_is_the_formula() -> None:
    x, weight, d = random(5, 40), random(40, seed=1), random(5, 40, seed=2)
    ours = [tensor.float().requires_grad_() for tensor in (x, weight)]
    theirs = [tensor.float().double().requires_grad_() for tensor in (x, weight)]
    found = gated_norm.norm(*ours, epsilon=1e-5)
    found.backward(d.float())
    expected = functional.rms_norm(theirs[0], (40,), theirs[1], 1e-5)
    expected.backward(d)
    close(found, expected)
    for one, other in zip(ours, theirs, strict=True):
        close(one.grad, other.grad)


def test_the_inside_of_an_expert_and_its_gradients_are_the_formula(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(swiglu, "BLOCK", 16)  # several blocks a row
    x, shares, d = random(5, 2 * 40), random(5, seed=1), random(5, 40, seed=2)
    ours = [tensor.float().requires_grad_() for tensor in (x, shares)]
    theirs = [tensor.float().double().requires_grad_() for tensor in (x, shares)]
    found = swiglu.scaled_swiglu(*ours)
    found.backward(d.float())
    gate, up = theirs[0].chunk(2, 1)
    expected = functional.silu(gate) * up * theirs[1][:, None]
    expected.backward(d)
    close(found, expected)
    for one, other in zip(ours, theirs, strict=True):
        close(one.grad, other.grad)


def test_a_kernel_that_does_not_fit_is_launched_with_fewer_chunks_in_flight() -> None:
    plan = lightning_launch.make_plan(random(1, 1, 64, 32).to(torch.bfloat16))
    tried: list[int] = []

    class OnlyTwoFit:
        def __getitem__(self, grid: tuple[int, ...]):
            def run(*_args: object, num_stages: int, **_constants: object) -> None:
                tried.append(num_stages)
                if num_stages > 2:
                    raise OutOfResources(required=245_920, limit=232_448, name="shared memory")

            return run

    kernel = OnlyTwoFit()
    plan.launch(kernel, (1,), stages=4, PACKED=False)
    plan.launch(kernel, (1,), stages=4, PACKED=False)
    assert tried == [4, 3, 2, 2]
