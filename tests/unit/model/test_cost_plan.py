"""The planner's numbers are the published ones where numbers are published."""

import dataclasses
import json
import math
import subprocess
import sys

import pytest

from m1.model.config import ModelConfig, ParallelLayout
from m1.model.cost.flops import (
    decode_flops_per_token,
    flops_table,
    prefill_flops_per_token,
    training_flops_per_token,
)
from m1.model.cost.parameters import count_parameters
from m1.model.cost.plan import (
    Prices,
    StageWork,
    checkpoint_bytes,
    pipeline_idle_share,
    plan,
    store_bytes,
)
from m1.model.cost.rank import rank_parameters
from m1.model.cost.step import StepShape

M1 = ModelConfig()
TOY = ModelConfig(
    num_layers=8, hidden_size=128, num_heads=4, head_width=32, num_key_value_heads=2,
    num_experts=4, experts_per_token=2, expert_hidden_size=128, vocabulary_size=2048,
    rotary_width=16,
)  # fmt: skip
STEP = StepShape(window_tokens=8192)


def work(name: str = "s", **fields: object) -> StageWork:
    return StageWork(**{"name": name, "steps": 10, "tokens": 10, "step": STEP, **fields})


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


@pytest.mark.parametrize(
    ("tensor", "pipeline", "expert"), [(1, 1, 1), (2, 1, 1), (1, 4, 2), (2, 8, 4), (2, 2, 1)]
)
def test_the_ranks_of_a_layout_hold_the_whole_model(
    tensor: int, pipeline: int, expert: int
) -> None:
    layout = ParallelLayout(nodes=32, tensor=tensor, pipeline=pipeline, expert=expert)

    held = [
        rank_parameters(TOY, layout, pipeline_rank=rank, window_tokens=256)
        for rank in range(pipeline)
    ]

    split = sum((part.dense - part.replicated) * tensor for part in held)
    whole = sum(part.replicated + part.experts * expert for part in held)
    assert split + whole == count_parameters(TOY).total


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


def test_prefill_is_the_sum_of_what_decoding_would_cost_and_the_work_inside_chunks() -> None:
    window = 512
    decoded = sum(decode_flops_per_token(TOY, context_tokens=n) for n in range(1, window + 1))
    inside = 4 * 7 * 128 * 64 * window

    assert prefill_flops_per_token(TOY, window_tokens=window) * window == pytest.approx(
        decoded + inside
    )


def test_the_table_is_the_three_functions_at_each_length() -> None:
    (row,) = flops_table(TOY, [64])

    assert row.training == 3 * row.prefill
    assert row.decode == decode_flops_per_token(TOY, context_tokens=64)


def test_the_published_reinforcement_run_costs_the_published_sum() -> None:
    hours = 512 * 21 * 24

    assert hours * Prices().per_gpu_hour == pytest.approx(534_700, rel=2e-3)


def test_plan_is_json_with_the_stable_keys() -> None:
    stages = [
        work("pretrain", tokens=7_500_000_000_000),
        work("reinforce-40k", tokens=10**9, generated_tokens=10**9),
    ]

    answer = json.loads(json.dumps(plan(M1, ParallelLayout(), stages=stages).to_json()))

    assert {
        "parameters", "memory_per_gpu", "flops_per_token", "gpu_hours", "cost", "store_bytes",
        "layout",
    } <= set(answer)  # fmt: skip
    assert answer["parameters"] == {"total": 456_089_655_296, "active": 45_944_920_064}
    assert answer["gpu_hours"]["total"] == pytest.approx(
        answer["gpu_hours"]["pretrain"] + answer["gpu_hours"]["reinforce-40k"]
    )
    assert answer["cost"]["total"] == pytest.approx(2.07 * answer["gpu_hours"]["total"])
    assert answer["memory_per_gpu"]["total"] == max(
        stage["memory_per_gpu"]["total"] for stage in answer["stages"].values()
    )


def test_the_store_holds_weights_two_checkpoints_and_tokens_of_each_stage() -> None:
    stages = [work(tokens=100), work("r", tokens=50, generated_tokens=50)]
    total = count_parameters(TOY).total

    assert checkpoint_bytes(TOY, STEP) == 14 * total
    assert store_bytes(TOY, stages) == 2 * (2 + 2 * 14) * total + 200 * 4


def test_generated_tokens_are_paid_for() -> None:
    sampled = work(generated_tokens=10)

    assert sampled.flops(TOY) - work().flops(TOY) == pytest.approx(
        10 * decode_flops_per_token(TOY, context_tokens=4096)
    )


def test_a_pipeline_waits_for_its_own_length_once_per_step() -> None:
    eight = StepShape(window_tokens=64, windows_per_step=8)

    assert pipeline_idle_share(work(step=eight)) == 0
    assert pipeline_idle_share(
        work(step=eight, layout=ParallelLayout(nodes=4, pipeline=4))
    ) == pytest.approx(3 / 11)


@pytest.mark.parametrize(
    "changed", [{"utilisation": 0.0}, {"utilisation": 1.1}, {"peak_tflops": 0}]
)
def test_impossible_prices_are_refused(changed: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(changed))):
        Prices(**changed)


@pytest.mark.parametrize("changed", [{"tokens": -1}, {"generated_tokens": -1}, {"steps": 0}])
def test_impossible_work_is_refused(changed: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=f"stage sft: .*{next(iter(changed))} = "):
        work("sft", **changed)


@pytest.mark.parametrize("field", ["window_tokens", "windows_per_step", "micro_batch_windows"])
def test_an_empty_batch_is_refused(field: str) -> None:
    with pytest.raises(ValueError, match=f"{field} = 0"):
        dataclasses.replace(STEP, **{field: 0})


def test_the_planner_imports_no_torch() -> None:
    code = (
        "import sys, m1.model.cost.plan, m1.model.cost.simulate, m1.model.cost.layouts\n"
        "sys.exit('torch' in sys.modules)"
    )

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
