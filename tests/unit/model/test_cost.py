"""The planner's numbers are the published ones where numbers are published."""

import json
import math
import subprocess
import sys

import pytest

from m1.model.config import ModelConfig, ParallelLayout
from m1.model.cost import (
    Prices,
    StageWork,
    count_parameters,
    decode_flops_per_token,
    memory_per_gpu,
    plan,
    prefill_flops_per_token,
    store_bytes,
    training_flops_per_token,
)

M1 = ModelConfig()
TOY = ModelConfig(
    num_layers=8, hidden_size=128, num_heads=4, head_width=32, num_key_value_heads=2,
    num_experts=4, experts_per_token=2, expert_hidden_size=128, vocabulary_size=2048,
    rotary_width=16,
)  # fmt: skip


def test_the_released_model_is_counted_to_the_parameter() -> None:
    counts = count_parameters(M1)

    assert counts.total == 456_089_655_296
    assert counts.active == 45_944_920_064
    assert counts.lightning == 17_616_650_240
    assert counts.softmax == 1_132_462_080
    assert counts.experts + counts.routers == 434_881_167_360


@pytest.mark.parametrize("config", [TOY, TOY.model_copy(update={"softmax_every": 3})])
def test_the_count_is_the_sum_over_the_weights(config: ModelConfig) -> None:
    from m1.model.decode_network import weight_shapes

    assert count_parameters(config).total == sum(map(math.prod, weight_shapes(config).values()))


def test_generation_cost_is_near_the_published_curve() -> None:
    # M1 figure 1: 1.242e16 FLOPs for 100,000 tokens; our causal count is known to be 10-20 % lower
    flops = sum(
        1000 * decode_flops_per_token(M1, context_tokens=position)
        for position in range(500, 100_000, 1000)
    )

    assert 0.8 * 1.242e16 < flops < 1.242e16


def test_training_on_the_published_tokens_matches_six_times_active_parameters() -> None:
    per_token = training_flops_per_token(M1, window_tokens=8192)

    assert per_token == pytest.approx(6 * 45.94e9, rel=0.06)  # attention and the head are the rest


def test_only_softmax_layers_grow_with_length() -> None:
    slope = decode_flops_per_token(M1, context_tokens=2) - decode_flops_per_token(
        M1, context_tokens=1
    )

    assert slope == pytest.approx(4 * 10 * 8192)
    assert prefill_flops_per_token(M1, window_tokens=8193) > prefill_flops_per_token(
        M1, window_tokens=8191
    )


def test_one_rank_holds_everything() -> None:
    memory = memory_per_gpu(TOY, ParallelLayout(), window_tokens=256)
    total = count_parameters(TOY).total

    assert memory.weights == 2 * total
    assert memory.gradients == 4 * total
    assert memory.optimizer == 12 * total


@pytest.mark.parametrize(
    "axis", [{"tensor": 8}, {"pipeline": 8}, {"context": 8}, {"expert": 8}, {}], ids=str
)
def test_every_parallel_axis_saves_memory(axis: dict[str, int]) -> None:
    base = memory_per_gpu(M1, ParallelLayout(), window_tokens=32_768)

    spread = memory_per_gpu(M1, ParallelLayout(nodes=8, **axis), window_tokens=32_768)

    assert spread.total < base.total


def test_optimizer_state_of_all_ranks_together_is_one_copy() -> None:
    layout = ParallelLayout(nodes=64, processes_per_node=8, expert=32, tensor=8)

    memory = memory_per_gpu(M1, layout, window_tokens=8192)

    assert memory.optimizer * layout.world_size == pytest.approx(
        12 * count_parameters(M1).total, rel=1e-6
    )


def test_the_published_reinforcement_run_costs_the_published_sum() -> None:
    hours = 512 * 21 * 24

    assert hours * Prices().per_gpu_hour == pytest.approx(534_700, rel=2e-3)


def test_plan_is_json_with_the_stable_keys() -> None:
    stages = [
        StageWork(name="pretrain", tokens=7_500_000_000_000, window_tokens=8192),
        StageWork(name="reinforce-40k", tokens=10**9, window_tokens=40_960, generated_tokens=10**9),
    ]

    answer = json.loads(json.dumps(plan(M1, ParallelLayout(), stages=stages).to_json()))

    assert set(answer) == {
        "parameters", "memory_per_gpu", "flops_per_token", "gpu_hours", "cost", "store_bytes",
        "layout",
    }  # fmt: skip
    assert answer["parameters"] == {"total": 456_089_655_296, "active": 45_944_920_064}
    assert answer["gpu_hours"]["total"] == pytest.approx(
        answer["gpu_hours"]["pretrain"] + answer["gpu_hours"]["reinforce-40k"]
    )
    assert answer["cost"]["total"] == pytest.approx(2.07 * answer["gpu_hours"]["total"])
    assert answer["store_bytes"] == store_bytes(M1, stages) > 2 * 14 * 456e9


def test_generated_tokens_are_paid_for() -> None:
    without = StageWork(name="s", tokens=10, window_tokens=64)
    sampled = StageWork(name="s", tokens=10, window_tokens=64, generated_tokens=10)

    assert sampled.flops(TOY) - without.flops(TOY) == pytest.approx(
        10 * decode_flops_per_token(TOY, context_tokens=32)
    )


@pytest.mark.parametrize(
    "changed", [{"utilisation": 0.0}, {"utilisation": 1.1}, {"peak_tflops": 0}]
)
def test_impossible_prices_are_refused(changed: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(changed))):
        Prices(**changed)


def test_negative_tokens_are_refused() -> None:
    with pytest.raises(ValueError, match="stage sft: tokens = -1"):
        StageWork(name="sft", tokens=-1, window_tokens=8)


def test_the_planner_imports_no_torch() -> None:
    code = "import sys, m1.model.cost; sys.exit('torch' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
