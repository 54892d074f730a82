"""The chunked head against whole logits in float64.

Shape letters: R rows, V vocabulary, D hidden.
"""

import pytest
import torch
from torch import Tensor

from m1.model import head_loss
from m1.model.cispo import ObjectiveSettings, policy_loss

R, V, D = 13, 50, 8


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head_loss, "CHUNK_ROWS", 5)
    monkeypatch.setattr(head_loss, "BLOCK_COLUMNS", 16)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def whole(hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    logprobs = (hidden @ weight.t()).log_softmax(1)
    entropy = -(logprobs.exp() * logprobs).sum(1)
    return logprobs.gather(1, targets[:, None])[:, 0], entropy


def cispo(logprobs: Tensor, rows: slice) -> Tensor:
    count = logprobs.shape[0]
    return policy_loss(
        logprobs[None],
        (random(R, seed=5)[rows] - 4)[None].to(logprobs),
        torch.tensor([0.7]),
        torch.ones(1, count, dtype=torch.bool),
        settings=ObjectiveSettings(is_weight_max=1.5),
        normaliser_tokens=float(R),
    ).loss


def cross_entropy(logprobs: Tensor, rows: slice) -> Tensor:
    return -logprobs.sum() / R


@pytest.mark.parametrize("objective", [cross_entropy, cispo])
def test_loss_and_gradients_are_those_of_whole_logits(objective: head_loss.Objective) -> None:
    ours = [random(R, D).requires_grad_(), random(V, D, seed=1).requires_grad_()]
    theirs = [tensor.detach().double().requires_grad_() for tensor in ours]
    targets = torch.arange(R) * 3

    loss, logprobs, entropy = head_loss.head_loss(*ours, targets, objective)
    (2 * loss).backward()
    expected_logprobs, expected_entropy = whole(*theirs, targets)
    expected = objective(expected_logprobs, slice(0, R))
    (2 * expected).backward()

    for found, true in zip(
        [loss, logprobs, entropy, *(x.grad for x in ours)],
        [expected, expected_logprobs, expected_entropy, *(x.grad for x in theirs)],
        strict=True,
    ):
        torch.testing.assert_close(found.double(), true, rtol=1e-5, atol=1e-6)


def test_log_probabilities_are_differentiable_by_computing_the_logits_again() -> None:
    ours = [random(R, D).requires_grad_(), random(V, D, seed=1).requires_grad_()]
    theirs = [tensor.detach().double().requires_grad_() for tensor in ours]
    targets, weights = torch.arange(R) * 3, random(R, seed=2)

    logprobs, _entropy = head_loss.head_logprobs(*ours, targets)
    (logprobs * weights).sum().backward()
    (whole(*theirs, targets)[0] * weights).sum().backward()

    for found, true in zip(ours, theirs, strict=True):
        torch.testing.assert_close(found.grad.double(), true.grad, rtol=1e-5, atol=1e-6)


def test_training_and_decoding_see_the_same_log_probabilities() -> None:
    hidden, weight, targets = random(R, D), random(V, D, seed=1), torch.arange(R) * 3
    training, _entropy = head_loss.head_logprobs(hidden, weight, targets)
    decoding = [
        head_loss.exact_logits(hidden[row : row + 1], weight).log_softmax(1)[0, targets[row]]
        for row in range(R)
    ]
    torch.testing.assert_close(training, torch.stack(decoding), rtol=0, atol=2e-6)


def test_gradients_of_the_fused_loss_are_handed_out_once() -> None:
    hidden, weight = random(R, D).requires_grad_(), random(V, D).requires_grad_()
    loss, _, _ = head_loss.head_loss(hidden, weight, torch.zeros(R).long(), cross_entropy)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="handed out"):
        loss.backward()
