"""One whole training step of the `gpu` preset's model, against transformers' MiniMaxForCausalLM.

    .venv/bin/python benchmarks/training_step.py [--tokens 8192 65536] [--profile]

Ours is what the pretrain stage runs (Megatron's DDP and distributed optimizer, bf16 parameters,
fp32 gradients and master weights); theirs is bf16 with torch's fused AdamW. Batch 1, random tokens,
no recomputation. Writes `benchmarks/results/<date>-training-step-<device>.md`.
"""

import argparse
import gc
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import yaml
from gpu_timing import RESULTS, ROOT, machine

from m1.model.config import ModelConfig, ParallelLayout
from m1.model.cost import count_parameters, training_flops_per_token
from m1.model.process_groups import process_groups
from m1.model.spec import BuildOptions, build_model
from m1.stages.settings import TrainSettings
from m1.stages.training.trainer import Trainer

PEAK_FLOPS = 989e12  # dense bf16 of an H100 or H200 by the datasheet
STEPS = 5


def preset() -> ModelConfig:
    """The sizes of `flows/presets/gpu.yaml`."""
    text = (ROOT / "flows" / "presets" / "gpu.yaml").read_text()
    return ModelConfig(**yaml.safe_load(text)["model"])


def random_windows(model: ModelConfig, tokens: int) -> dict[str, torch.Tensor]:
    """One window of random tokens and its targets."""
    row = torch.randint(0, model.vocabulary_size, (1, tokens + 1), device="cuda")
    mask = torch.ones(1, tokens, device="cuda")
    return {"tokens_BT": row[:, :-1], "targets_BT": row[:, 1:], "loss_mask_BT": mask}


def seconds_per_step(step: Callable[[], Any]) -> float:
    """Median of a few, after two that warm up."""
    for _ in range(2):
        step()
    times = []
    for _ in range(STEPS):
        torch.cuda.synchronize()
        start = time.perf_counter()
        step()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return sorted(times)[STEPS // 2]


def ours(model: ModelConfig, lengths: list[int], *, profile: bool) -> dict[int, dict[str, float]]:
    """Seconds and peak memory per window length."""
    found = {}
    with process_groups(ParallelLayout(), seed=1):
        options = BuildOptions(window_tokens=max(lengths), parameter_type=torch.bfloat16)
        trainer = Trainer(
            build_model(model, ParallelLayout(), options), TrainSettings(precision="bf16")
        )
        for tokens in lengths:
            batch = random_windows(model, tokens)
            torch.cuda.reset_peak_memory_stats()

            def step(batch: dict[str, torch.Tensor] = batch) -> Any:
                return trainer.step([batch], learning_rate=1e-4)

            found[tokens] = {
                "seconds": seconds_per_step(step),
                "gibibytes": torch.cuda.max_memory_allocated() / 2**30,
            }
            print("ours", tokens, found[tokens], flush=True)
        if profile:
            show_profile(lambda: trainer.step([random_windows(model, lengths[0])], learning_rate=0))
    return found


def show_profile(step: Callable[[], Any]) -> None:
    """Where one step's GPU time goes."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as record

    with record(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as found:
        step()
        torch.cuda.synchronize()
    print(found.key_averages().table(sort_by="self_cuda_time_total", row_limit=45))


def transformers_model(model: ModelConfig) -> Any:
    """The same sizes, in bf16 on the GPU."""
    from transformers import MiniMaxConfig, MiniMaxForCausalLM

    kinds = [model.layer_kind(layer) for layer in range(model.num_layers)]
    names = {"lightning": "linear_attention", "softmax": "full_attention"}
    config = MiniMaxConfig(
        vocab_size=model.vocabulary_size,
        hidden_size=model.hidden_size,
        intermediate_size=model.expert_hidden_size,
        num_hidden_layers=model.num_layers,
        num_attention_heads=model.num_heads,
        num_key_value_heads=model.num_key_value_heads,
        head_dim=model.head_width,
        num_local_experts=model.num_experts,
        num_experts_per_tok=model.experts_per_token,
        layer_types=[names[kind] for kind in kinds],
        max_position_embeddings=2**20,
        use_cache=False,
    )
    with torch.device("cuda"):
        return MiniMaxForCausalLM(config).to(torch.bfloat16)


def theirs(model: ModelConfig, tokens: int) -> dict[str, float]:
    """Seconds and peak memory of a plain step."""
    network = transformers_model(model)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, fused=True)
    batch = random_windows(model, tokens)
    torch.cuda.reset_peak_memory_stats()

    def step() -> None:
        loss = network(input_ids=batch["tokens_BT"], labels=batch["tokens_BT"]).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return {
        "seconds": seconds_per_step(step),
        "gibibytes": torch.cuda.max_memory_allocated() / 2**30,
    }


def row(name: str, tokens: int, found: dict[str, float], model: ModelConfig) -> str:
    """One line of the table."""
    rate = tokens / found["seconds"]
    use = rate * training_flops_per_token(model, window_tokens=tokens) / PEAK_FLOPS
    return (
        f"| {name} | {tokens} | {found['seconds'] * 1e3:.0f} | {rate:.0f} | {use:.1%} "
        f"| {found['gibibytes']:.1f} |"
    )


def main() -> int:
    """Run both sides and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, nargs="+", default=[8192])
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--commit", help="what to note where there is no git")
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    model, counts = preset(), count_parameters(preset())
    lines = ["# Training step", ""]
    lines += [f"- {name}: {value}" for name, value in machine(arguments.commit).items()]
    lines += [f"- parameters: {counts.total / 1e9:.2f}e9, active {counts.active / 1e9:.3f}e9", ""]
    lines += [
        "| what | tokens | ms a step | tokens/s | MFU | peak GiB |",
        "|---|---|---|---|---|---|",
    ]
    found = ours(model, arguments.tokens, profile=arguments.profile)
    lines += [row("ours", tokens, each, model) for tokens, each in found.items()]
    gc.collect()
    torch.cuda.empty_cache()
    first = arguments.tokens[0]
    lines.append(row("transformers", first, theirs(model, first), model))
    card = torch.cuda.get_device_name().lower().replace(" ", "-")
    path = arguments.results / f"{datetime.now(UTC):%Y-%m-%d}-training-step-{card}.md"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
    print(path.read_text())
    return 0


if __name__ == "__main__":
    sys.exit(main())
