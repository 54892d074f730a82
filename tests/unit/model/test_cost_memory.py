"""Memory and communication of a layout, held against what torch allocates on a small model."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from m1.model.config import ModelConfig, ParallelLayout, Recompute
from m1.model.cost.communication import bytes_per_step
from m1.model.cost.memory import (
    activations_by_recompute,
    head_bytes,
    kept_bytes_per_token,
    memory_per_gpu,
)
from m1.model.cost.parameters import count_parameters
from m1.model.cost.step import Precision, StepShape

M1 = ModelConfig()
SMALL = ModelConfig(
    num_layers=4, softmax_every=2, hidden_size=96, num_heads=4, head_width=32,
    num_key_value_heads=2, num_experts=4, experts_per_token=2, expert_hidden_size=80,
    vocabulary_size=640, rotary_width=16,
)  # fmt: skip
ACTIVATION_TOLERANCE = 0.06  # masks, labels and rotary tables are left out
WINDOW, WINDOWS = 512, 2
about_megatron = pytest.mark.filterwarnings("ignore")  # what megatron-core says of itself
TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def small_step(precision: Precision) -> StepShape:
    return StepShape(
        window_tokens=WINDOW,
        windows_per_step=WINDOWS,
        micro_batch_windows=WINDOWS,
        precision=precision,
    )


def saved_bytes(model: ModelConfig, layout: ParallelLayout, precision: Precision) -> int:
    """What autograd keeps between forward and backward, each storage once, weights left out."""
    from m1.model.process_groups import process_groups
    from m1.model.spec import BuildOptions, build_model, forward_nats

    options = BuildOptions(parameter_type=TYPES[precision], router_auxiliary_coefficient=1e-3)
    kept: dict[int, torch.Tensor] = {}
    with process_groups(layout, seed=0):
        network = build_model(model, layout, options).train()
        weights = {weight.untyped_storage().data_ptr() for weight in network.parameters()}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            address = tensor.untyped_storage().data_ptr()
            if address not in weights:
                kept[address] = tensor
            return tensor

        tokens = torch.randint(
            0, model.vocabulary_size, (WINDOWS, WINDOW + 1), generator=torch.manual_seed(0)
        )
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            forward_nats(network, tokens)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@about_megatron
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
@pytest.mark.parametrize("softmax_every", [1, 2, 1000], ids=["softmax", "both", "lightning"])
def test_activations_are_what_autograd_keeps(
    softmax_every: int, recompute: Recompute, precision: Precision
) -> None:
    model = SMALL.model_copy(update={"softmax_every": softmax_every})
    layout, step = ParallelLayout(recompute=recompute), small_step(precision)

    measured = saved_bytes(model, layout, precision)

    # one rank: the gradients of logits and of the head's copy come only in backward
    gradients = 4 * WINDOW * WINDOWS * model.vocabulary_size
    gradients += 4 * model.vocabulary_size * model.hidden_size * (precision == "bf16")
    kept = WINDOW * WINDOWS * kept_bytes_per_token(model, layout, step, recompute, 0)
    planned = kept + head_bytes(model, layout, step) - gradients
    assert planned == pytest.approx(measured, rel=ACTIVATION_TOLERANCE)


@about_megatron
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_weights_gradients_and_optimizer_are_exactly_what_the_trainer_allocates(
    precision: Precision,
) -> None:
    from m1.model.process_groups import process_groups
    from m1.model.spec import BuildOptions, build_model
    from m1.stages.settings import PretrainSettings
    from m1.stages.training.trainer import Trainer

    layout = ParallelLayout()
    with process_groups(layout, seed=0):
        network = build_model(SMALL, layout, BuildOptions(parameter_type=TYPES[precision]))
        trainer = Trainer(network, PretrainSettings(precision=precision))
        tokens = torch.randint(0, SMALL.vocabulary_size, (WINDOWS, WINDOW))
        batch = {
            "tokens_BT": tokens,
            "targets_BT": tokens,
            "loss_mask_BT": torch.ones(WINDOWS, WINDOW),
        }
        trainer.step([batch], learning_rate=1e-3)
        weights = sum(w.numel() * w.element_size() for w in network.parameters())
        gradients = sum(
            w.main_grad.numel() * w.main_grad.element_size() for w in network.parameters()
        )
        states = optimizer_bytes(trainer.optimizer, copies_weights=precision == "bf16")

    planned = memory_per_gpu(SMALL, layout, small_step(precision))
    assert (planned.weights, planned.gradients, planned.optimizer) == (weights, gradients, states)


def optimizer_bytes(optimizer: object, *, copies_weights: bool) -> int:
    """Moments of every parameter, and the fp32 copies where they are no views of the weights."""
    total = 0
    for part in getattr(optimizer, "chained_optimizers", [optimizer]):
        for weight, state in part.optimizer.state.items():
            tensors = [value for name, value in state.items() if name.startswith("exp_avg")]
            tensors += [weight] if copies_weights else []
            total += sum(t.numel() * t.element_size() for t in tensors)
    return total


@about_megatron
@pytest.mark.parametrize("recompute", ["selective", "full"])
def test_recomputation_changes_no_gradient(recompute: Recompute) -> None:
    from m1.model.process_groups import process_groups
    from m1.model.spec import BuildOptions, build_model, forward_nats

    def gradients(choice: Recompute) -> dict[str, torch.Tensor]:
        layout = ParallelLayout(recompute=choice)
        with process_groups(layout, seed=0):
            network = build_model(SMALL, layout, BuildOptions(seed=3)).train()
            tokens = torch.arange(2 * 65).view(2, 65) % SMALL.vocabulary_size
            forward_nats(network, tokens).mean().backward()
        return {name: w.grad for name, w in network.named_parameters() if w.grad is not None}

    plain, again = gradients("none"), gradients(recompute)

    assert plain.keys() == again.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(again[name], gradient, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("window_tokens", [8192, 1_048_576])
def test_recomputing_more_keeps_less(window_tokens: int) -> None:
    layout = ParallelLayout(nodes=64, processes_per_node=8, tensor=8, pipeline=8, context=8)

    kept = activations_by_recompute(M1, layout, StepShape(window_tokens=window_tokens))

    assert kept["full"] < kept["selective"] < kept["none"]


@pytest.mark.parametrize(
    "axis", [{"tensor": 8}, {"pipeline": 8}, {"context": 8}, {"expert": 8}, {}], ids=str
)
def test_every_parallel_axis_saves_memory(axis: dict[str, int]) -> None:
    step = StepShape(window_tokens=32_768)

    spread = memory_per_gpu(M1, ParallelLayout(nodes=8, **axis), step)

    assert spread.total < memory_per_gpu(M1, ParallelLayout(), step).total


def test_optimizer_state_of_all_ranks_together_is_one_copy() -> None:
    layout = ParallelLayout(nodes=64, processes_per_node=8, expert=32, tensor=8)

    memory = memory_per_gpu(M1, layout, StepShape(window_tokens=8192))

    # norms and routers are held whole by each of the 8 tensor ranks
    counts = count_parameters(M1)
    copies = counts.total + 7 * (counts.norms + counts.routers)
    assert memory.optimizer * layout.world_size == pytest.approx(12 * copies, rel=1e-6)


# ---- communication -----------------------------------------------------------------------------

AXES = ("tensor", "sequence", "context", "expert", "pipeline", "data")


def test_one_rank_sends_nothing() -> None:
    assert bytes_per_step(SMALL, ParallelLayout(), small_step("bf16")).total == 0


@pytest.mark.parametrize(
    ("layout", "speaks"),
    [
        ({"tensor": 2}, {"tensor", "sequence"}),
        ({"context": 2}, {"context", "data"}),  # context ranks hold copies: gradients are summed
        ({"expert": 2}, {"expert", "data"}),
        ({"pipeline": 2}, {"pipeline"}),
        ({}, {"data"}),
    ],
    ids=["tensor", "context", "expert", "pipeline", "data"],
)
def test_each_axis_sends_on_its_own_account(layout: dict[str, int], speaks: set[str]) -> None:
    # experts of a tensor pair are copies of one another, so their gradients are summed as well
    speaks = speaks | {"data"} if "tensor" in layout else speaks

    sent = bytes_per_step(SMALL, ParallelLayout(nodes=2, **layout), small_step("bf16"))

    assert {axis for axis in AXES if getattr(sent, axis)} == speaks


def test_two_data_ranks_exchange_half_of_gradients_and_weights() -> None:
    sent = bytes_per_step(SMALL, ParallelLayout(nodes=2), small_step("bf16"))

    assert sent.data == count_parameters(SMALL).total * (4 + 2) // 2


def test_experts_get_each_token_copy_and_send_it_back_twice() -> None:
    sent = bytes_per_step(SMALL, ParallelLayout(nodes=2, expert=2), small_step("bf16"))

    rows = WINDOW * WINDOWS * SMALL.experts_per_token
    half_travels = rows * SMALL.hidden_size * 2 / 2
    assert sent.expert == 2 * 2 * half_travels * SMALL.num_layers


def test_states_of_lightning_layers_do_not_grow_with_the_window() -> None:
    lightning = SMALL.model_copy(update={"softmax_every": 1000})
    layout = ParallelLayout(nodes=4, context=4)

    short, long = (
        bytes_per_step(lightning, layout, StepShape(window_tokens=tokens)).context
        for tokens in (1024, 1_048_576)
    )

    assert short == long
    # forward and backward, two pieces of each of the three other ranks, fp32
    assert short == 2 * 2 * 3 * 4 * lightning.num_layers * 4 * 32 * 32


@given(
    tensor=st.sampled_from([1, 2]),
    context=st.sampled_from([1, 2, 4]),
    expert=st.sampled_from([1, 2, 4]),
    micro_batches=st.integers(1, 6),
)
def test_twice_the_micro_batches_send_twice_the_activations_and_the_same_gradients(
    tensor: int, context: int, expert: int, micro_batches: int
) -> None:
    layout = ParallelLayout(nodes=8, tensor=tensor, context=context, expert=expert)
    once, twice = (
        bytes_per_step(
            SMALL, layout, StepShape(window_tokens=512, windows_per_step=n * layout.data)
        )
        for n in (micro_batches, 2 * micro_batches)
    )

    assert twice.data == once.data
    for axis in ("sequence", "context", "expert"):
        assert getattr(twice, axis) == pytest.approx(2 * getattr(once, axis), abs=2)
