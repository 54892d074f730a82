"""One of two tensor-parallel ranks: its share of the gated norm and of the head, against the whole.

Started by `test_kernels_parallel.py`; holds no tests. Exits with an error if anything differs.
"""

import os
import sys

os.environ["TRITON_INTERPRET"] = "1"

import torch
from torch import Tensor, distributed

from m1.model import head_loss
from m1.model.kernels import gated_norm

RANKS = 2


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def check_norm(rank: int, group: distributed.ProcessGroup) -> None:
    """Features are split over ranks; outputs and gradients are slices of the whole's."""
    x = [random(5, 40), random(5, 40, seed=1), random(40, seed=2)]
    d, part = random(5, 40, seed=3), slice(20 * rank, 20 * rank + 20)
    whole = [tensor.clone().requires_grad_() for tensor in x]
    mine = [tensor[..., part].contiguous().requires_grad_() for tensor in x]
    expected = gated_norm.gated_norm(*whole, epsilon=1e-5)
    found = gated_norm.gated_norm(*mine, epsilon=1e-5, group=group)
    expected.backward(d)
    found.backward(d[:, part].contiguous())
    torch.testing.assert_close(found, expected[:, part])
    for one, other in zip(mine, whole, strict=True):
        torch.testing.assert_close(one.grad, other.grad[..., part])


def check_head(rank: int, group: distributed.ProcessGroup) -> None:
    """The vocabulary is split; gradients of hidden states are parts of a sum."""
    hidden, weight, targets = random(13, 8), random(50, 8, seed=1), torch.arange(13) * 3
    part = slice(25 * rank, 25 * rank + 25)
    whole = [tensor.clone().requires_grad_() for tensor in (hidden, weight)]
    mine = [hidden.clone().requires_grad_(), weight[part].clone().requires_grad_()]
    expected = head_loss.head_logprobs(*whole, targets)
    found = head_loss.head_logprobs(*mine, targets, group=group)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)
    expected[0].sum().backward()
    found[0].sum().backward()
    distributed.all_reduce(mine[0].grad)
    torch.testing.assert_close(mine[0].grad, whole[0].grad)
    torch.testing.assert_close(mine[1].grad, whole[1].grad[part])


def main() -> None:
    rank, meeting_file = int(sys.argv[1]), sys.argv[2]
    distributed.init_process_group(
        "gloo", init_method=f"file://{meeting_file}", rank=rank, world_size=RANKS
    )
    group = distributed.group.WORLD
    assert group is not None
    check_norm(rank, group)
    check_head(rank, group)
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
