"""Are the kernels near what the GPU allows, and ahead of the best public ones?

    .venv/bin/python benchmarks/kernels.py [--sections errors attention whole head norm]

Both sides run in one process on fresh random bf16 input; times are medians of CUDA-graph replays.
The other side of attention is `chunk_simple_gla` of fla-core 0.6.0 (`pip install fla-core==0.6.0
einops`); without it those numbers are skipped and the file says so. Its first call tunes itself for
some minutes. Writes `benchmarks/results/<date>-kernels-<device>.md` and `.json`.

Shape letters: T tokens, H heads, W head width, V vocabulary, D hidden, F features.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from gpu_timing import RESULTS, copy_rate, machine, milliseconds, peak_gibibytes, random
from torch import Tensor
from torch.nn import functional

from m1.model.head_loss import head_logprobs, head_loss
from m1.model.kernels import gated_norm, lightning
from m1.model.reference import recurrent_lightning_attention

WIDTH = 128
HEAD = {"tokens": 8192, "hidden": 6144, "vocabulary": 200_064}

try:
    from fla.ops.simple_gla import chunk_simple_gla

    FLA = ""
except ImportError as error:
    FLA = f"skipped: {error}"

Measured = dict[str, Any]


def slopes(heads: int) -> Tensor:
    """The first layer's decay rates."""
    exponent = torch.arange(1, heads + 1, device="cuda") * -8.0 / heads
    return torch.exp2(exponent)


def ours(x: list[Tensor], rates: Tensor, d_output: Tensor | None) -> Any:
    """[B, H, T, W] in; the output, with gradients if asked for."""
    output, _state = lightning.attention(tuple(x), rates, None, None)
    return output if d_output is None else (output, *torch.autograd.grad(output, x, d_output))


def theirs(x: list[Tensor], rates: Tensor, d_output: Tensor | None) -> Any:
    """The same from FLA, [B, T, H, W] in."""
    output, _state = chunk_simple_gla(*x, g_gamma=-rates, scale=1.0)
    return output if d_output is None else (output, *torch.autograd.grad(output, x, d_output))


def errors() -> Iterator[tuple[str, Measured]]:
    """Relative errors against an fp64 recurrence, both sides on the same input."""
    length, heads = 1024, 16
    x, d = [random(1, length, heads, WIDTH) for _ in range(3)], random(1, length, heads, WIDTH)
    rates = slopes(heads)
    exact = [tensor.double().requires_grad_() for tensor in x]
    output, _state = recurrent_lightning_attention(*exact, rates)
    truth = (output.detach(), *torch.autograd.grad(output, exact, d.double()))
    turned = [tensor.transpose(1, 2).contiguous().requires_grad_() for tensor in x]
    found = [t.transpose(1, 2) for t in ours(turned, rates, d.transpose(1, 2).contiguous())]
    leaves = [tensor.requires_grad_() for tensor in x]
    others = [None] * 4 if FLA else theirs(leaves, rates, d)
    for name, true, one, other in zip(("o", "dq", "dk", "dv"), truth, found, others, strict=True):
        yield (
            f"relative error of {name}",
            {"ours": distance(one, true), "fla": None if FLA else distance(other, true)},
        )


def distance(found: Any, true: Tensor) -> float:
    """Norm of the difference over the norm."""
    return float((found.detach().double() - true).norm() / true.norm())


def attention() -> Iterator[tuple[str, Measured]]:
    """Time of forward and of forward with backward, ours against FLA's."""
    for heads, length in ((64, 8192), (64, 32_768), (64, 131_072), (8, 131_072)):
        for name, with_backward in (("forward", False), ("forward + backward", True)):
            yield (
                f"attention {name}, H={heads}, {length} tokens",
                both(heads, length, with_backward),
            )


def whole_rows() -> Iterator[tuple[str, Measured]]:
    """Attention as a layer uses it, packed documents, and a million tokens."""
    yield "SiLU and attention, forward + backward, H=64, 8192 tokens", with_silu(64, 8192)
    heads = 64 if torch.cuda.get_device_properties(0).total_memory > 120 * 2**30 else 32
    yield f"attention forward + backward, H={heads}, 1048576 tokens", longest(heads)
    yield "attention forward + backward, packed documents, H=64, 32768 tokens", packed(64, 32_768)


def both(heads: int, length: int, with_backward: bool) -> Measured:
    """Milliseconds of both sides and of one pass over the tensors at the copy's rate."""
    rates, result = slopes(heads), {}
    for side, run in (("ours", ours), ("fla", theirs)):
        if side == "fla" and FLA:
            continue
        shape = (1, heads, length, WIDTH) if side == "ours" else (1, length, heads, WIDTH)
        x = [random(*shape).requires_grad_(with_backward) for _ in range(3)]
        d = random(*shape) if with_backward else None
        result[side] = milliseconds(lambda run=run, x=x, d=d: run(x, rates, d))
    tensors = 11 if with_backward else 4
    result["floor"] = tensors * length * heads * WIDTH * 2 / copy_rate() * 1e3
    return result


def with_silu(heads: int, length: int) -> Measured:
    """From the projection's pre-activations to their gradient."""
    rates = slopes(heads)
    qkv = random(length, 1, heads, 3 * WIDTH).requires_grad_()
    d = random(1, heads, length, WIDTH)

    def run_ours() -> Any:
        output, _state = lightning.silu_attention(qkv, rates, None, None)
        return torch.autograd.grad(output, qkv, d)

    def run_theirs() -> Any:
        parts = functional.silu(qkv).transpose(0, 1).chunk(3, -1)
        output, _state = chunk_simple_gla(*parts, g_gamma=-rates, scale=1.0)
        return torch.autograd.grad(output, qkv, d.transpose(1, 2))

    return {"ours": milliseconds(run_ours), "fla": None if FLA else milliseconds(run_theirs)}


def packed(heads: int, length: int) -> Measured:
    """Sixteen documents in one row."""
    rates, ends = slopes(heads), torch.arange(0, length + 1, length // 16, device="cuda")
    ids = (torch.arange(length, device="cuda") // (length // 16))[None]
    x = [random(1, heads, length, WIDTH).requires_grad_() for _ in range(3)]
    d = random(1, heads, length, WIDTH)

    def run_ours() -> Any:
        output, _state = lightning.attention(tuple(x), rates, ids, None)
        return torch.autograd.grad(output, x, d)

    y = [tensor.detach().transpose(1, 2).contiguous().requires_grad_() for tensor in x]

    def run_theirs() -> Any:
        output, _state = chunk_simple_gla(*y, g_gamma=-rates, scale=1.0, cu_seqlens=ends)
        return torch.autograd.grad(output, y, d.transpose(1, 2))

    fla = None if FLA else milliseconds(run_theirs, in_graph=False)
    return {"ours": milliseconds(run_ours), "fla": fla}


def longest(heads: int) -> Measured:
    """A million tokens: ours alone, since FLA's states do not fit."""
    shape = (1, heads, 2**20, WIDTH)
    x, d = [random(*shape).requires_grad_() for _ in range(3)], random(*shape)
    held = torch.cuda.memory_allocated() / 2**30
    peak = held + peak_gibibytes(lambda: ours(x, slopes(heads), d))
    time = milliseconds(lambda: ours(x, slopes(heads), d), in_graph=False)
    return {"ours": time, "peak_gibibytes": peak}


def head() -> Iterator[tuple[str, Measured]]:
    """The LM head with its loss; the other side is M1's own way, whole fp32 logits."""
    hidden = random(HEAD["tokens"], HEAD["hidden"]).requires_grad_()
    scale = 2 * HEAD["hidden"] ** -0.5
    targets = torch.randint(0, HEAD["vocabulary"], (HEAD["tokens"],), device="cuda")
    for dtype in (torch.bfloat16, torch.float32):
        weight = random(HEAD["vocabulary"], HEAD["hidden"], dtype=torch.float32).mul_(scale)
        weight = weight.to(dtype).requires_grad_()
        name = f"head, {str(dtype).removeprefix('torch.')} weight"

        def step(weight: Tensor = weight) -> Any:
            loss, _, _ = head_loss(hidden, weight, targets, lambda lp, _rows: -lp.mean())
            return torch.autograd.grad(loss, (hidden, weight))

        def forward(weight: Tensor = weight) -> Any:
            return head_logprobs(hidden.detach(), weight.detach(), targets)

        def whole(weight: Tensor = weight) -> Any:
            logits = functional.linear(hidden.float(), weight.float())
            return torch.autograd.grad(functional.cross_entropy(logits, targets), (hidden, weight))

        peak = peak_gibibytes(step)
        yield (
            f"{name}: forward + backward",
            {
                "ours": milliseconds(step, in_graph=False),
                "whole fp32 logits": milliseconds(whole, in_graph=False),
                "peak_gibibytes": peak,
            },
        )
        yield f"{name}: forward only", {"ours": milliseconds(forward, in_graph=False)}
        few = slice(0, 256)
        found, _entropy = head_logprobs(hidden[few].detach(), weight.detach(), targets[few])
        true = exact_logprobs(hidden[few].detach(), weight.detach(), targets[few])
        yield f"{name}: largest error", {"ours": float((found - true).abs().max())}


def exact_logprobs(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """In fp64, block by block of the vocabulary."""
    blocks = [hidden.double() @ part.double().t() for part in weight.split(16_384)]
    return torch.cat(blocks, 1).log_softmax(1).gather(1, targets[:, None])[:, 0]


def norm() -> Iterator[tuple[str, Measured]]:
    """RMSNorm over 64 heads times sigmoid(gate), forward and backward, 16384 tokens."""
    x, gate, d = (random(16_384, 8192) for _ in range(3))
    weight = random(8192)
    leaves = [tensor.requires_grad_() for tensor in (x, gate, weight)]

    def run_ours() -> Any:
        output = gated_norm.gated_norm(*leaves, epsilon=1e-5)
        return torch.autograd.grad(output, leaves, d)

    @torch.compile
    def formula(x: Tensor, gate: Tensor, weight: Tensor) -> Tensor:
        x32 = x.float()
        normed = x32 * torch.rsqrt(x32.square().mean(-1, keepdim=True) + 1e-5)
        return (normed * weight.float() * torch.sigmoid(gate.float())).to(x.dtype)

    def run_compiled() -> Any:
        return torch.autograd.grad(formula(*leaves), leaves, d)

    yield (
        "gated norm, 16384 x 8192",
        {
            "ours": milliseconds(run_ours),
            "compiled": milliseconds(run_compiled),
            "floor": 8 * x.numel() * 2 / copy_rate() * 1e3,
        },
    )


SECTIONS = {
    "errors": errors,
    "attention": attention,
    "whole": whole_rows,
    "head": head,
    "norm": norm,
}


def table(rows: dict[str, Measured], where: dict[str, str]) -> str:
    """The result as Markdown; a ratio above 1 says ours is faster."""
    lines = ["# Kernels", "", *(f"- {name}: {value}" for name, value in where.items()), ""]
    lines += ["| what | ours | other | other / ours | over floor | peak GiB |"]
    lines += ["|---|---|---|---|---|---|"]
    for name, row in rows.items():
        other = next(
            (row[key] for key in ("fla", "whole fp32 logits", "compiled") if row.get(key)), None
        )
        mine = row.get("ours")
        cells = [
            "" if mine is None else f"{mine:.3g}",
            "" if other is None else f"{other:.3g}",
            "" if other is None or mine is None else f"{other / mine:.2f}",
            f"{mine / row['floor']:.2f}" if mine and "floor" in row else "",
            f"{row['peak_gibibytes']:.2f}" if "peak_gibibytes" in row else "",
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |{row.get('failed', '')}")
    return "\n".join(lines) + "\n"


def write(rows: dict[str, Measured], where: dict[str, str], folder: Path) -> Path:
    """The dated files; returns the Markdown one."""
    card = where["device"].lower().replace(" ", "-")
    path = folder / f"{datetime.now(UTC):%Y-%m-%d}-kernels-{card}.md"
    folder.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".json").write_text(json.dumps({"machine": where, "rows": rows}, indent=1))
    path.write_text(table(rows, where))
    return path


def main() -> int:
    """Run the sections and write the files; a section that fails is named and leaves the rest."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sections", nargs="+", default=list(SECTIONS), choices=list(SECTIONS))
    parser.add_argument("--commit", help="what to note where there is no git")
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    where = machine(arguments.commit) | {"fla-core": FLA or "0.6.0"}
    rows: dict[str, Measured] = {}
    failed = 0
    for section in arguments.sections:
        try:
            for name, measured in SECTIONS[section]():
                rows[name] = measured
                print(name, measured, flush=True)
                write(rows, where, arguments.results)  # a run cut short keeps what it measured
                torch.cuda.empty_cache()
        except (RuntimeError, AssertionError) as error:
            failed += 1
            rows[section] = {"failed": repr(error)[:200]}
            print(section, repr(error), flush=True)
    print(write(rows, where, arguments.results).read_text())
    return failed


if __name__ == "__main__":
    sys.exit(main())
