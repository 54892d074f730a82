"""The pieces of a layer against slow, obvious forms of themselves.

Shape letters: B batch, T tokens, H heads, G key/value heads, W head width, D hidden.
"""

import pytest
import torch
from torch.nn import functional

from m1.model.lightning_attention import lightning_attention
from m1.model.residual import _NormFunction
from m1.model.softmax_attention import LONGEST_MASKED_TOKENS, document_attention

SLOPES_H = torch.tensor([0.9, 0.05])


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_the_written_out_gradient_of_the_norm_is_autograds() -> None:
    x, weight, grad = random(5, 3, 16), random(16, seed=1), random(5, 3, 16, seed=2)
    ours = [x.clone().requires_grad_(), weight.clone().requires_grad_()]
    theirs = [x.clone().requires_grad_(), weight.clone().requires_grad_()]

    y_ours = _NormFunction.apply(ours[0], ours[1], 1e-5)
    y_theirs = functional.rms_norm(theirs[0], (16,), theirs[1], 1e-5)
    y_ours.backward(grad)
    y_theirs.backward(grad)

    torch.testing.assert_close(y_ours, y_theirs)
    torch.testing.assert_close(ours[0].grad, theirs[0].grad)
    torch.testing.assert_close(ours[1].grad, theirs[1].grad)


def test_a_sequence_may_be_cut_anywhere_and_carried_on_by_its_state() -> None:
    q, k, v = (random(1, 2, 300, 8, seed=s) * 0.5 for s in range(3))
    whole, end = lightning_attention(q, k, v, SLOPES_H)

    first, state = lightning_attention(q[:, :, :131], k[:, :, :131], v[:, :, :131], SLOPES_H)
    second, last = lightning_attention(
        q[:, :, 131:], k[:, :, 131:], v[:, :, 131:], SLOPES_H, initial_state_BHWW=state
    )

    torch.testing.assert_close(torch.cat([first, second], 2), whole, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(last, end, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("length", [64, LONGEST_MASKED_TOKENS + 3], ids=["masked", "by-document"])
def test_documents_of_a_row_never_see_each_other_in_a_softmax_layer(length: int) -> None:
    q, k, v = (
        random(1, 4, length, 8),
        random(1, 2, length, 8, seed=1),
        random(1, 2, length, 8, seed=2),
    )
    cut = length // 3
    ids = torch.tensor([[0] * cut + [1] * (length - cut)])

    output = document_attention(q, k, v, ids)
    alone = document_attention(q[:, :, cut:], k[:, :, cut:], v[:, :, cut:], None)

    torch.testing.assert_close(output[:, :, cut:], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("documents", [1, 3])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_queries_from_the_middle_of_a_row_attend_as_in_the_whole_row(
    device: str, documents: int
) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    length, start, stop = 2300, 700, 1800
    # half precision on a GPU goes through the flash kernel's own lower-right mask
    kind, tolerance = (torch.bfloat16, 2e-2) if device == "cuda" else (torch.float32, 1e-5)
    shapes = ((1, heads, length, 16) for heads in (4, 2, 2))
    q, k, v = (random(*s, seed=n).to(device, kind) for n, s in enumerate(shapes))
    ids = (torch.arange(length, device=device) * documents // length)[None]

    whole = document_attention(q, k, v, ids)
    part = document_attention(q[:, :, start:stop], k, v, ids, start=start)

    torch.testing.assert_close(part, whole[:, :, start:stop], rtol=0, atol=tolerance)
