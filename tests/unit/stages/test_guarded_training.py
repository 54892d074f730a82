"""The training loop under bad batches, with a real model, optimizer, checkpoints and store."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from m1.data_recipes.pack import TokenBatch
from m1.infra.errors import StageFailedError
from m1.infra.store.local import LocalStore
from m1.model.config import ModelConfig, ParallelLayout
from m1.model.process_groups import process_groups
from m1.model.spec import BuildOptions, HybridModel, build_model
from m1.stages.context import StageContext
from m1.stages.contract import StageSpec
from m1.stages.settings import TrainSettings
from m1.stages.training.loop import to_micro_batches, train
from m1.stages.training.session import check_finite, weights_digest
from m1.stages.training.trainer import Trainer

# torch and megatron-core about each other
pytestmark = [
    pytest.mark.filterwarnings(f"ignore::{kind}")
    for kind in ("UserWarning", "FutureWarning", "DeprecationWarning")
]
MODEL = ModelConfig(
    num_layers=2,
    softmax_every=2,
    hidden_size=16,
    num_heads=2,
    head_width=8,
    num_key_value_heads=1,
    rotary_width=4,
    num_experts=2,
    expert_hidden_size=16,
    vocabulary_size=64,
)
SETTINGS = {
    "steps": 6,
    "window_tokens": 16,
    "windows_per_step": 2,
    "micro_batch_windows": 2,
    "checkpoint_every_steps": 2,
    "skips_in_a_row": 2,
    "learning_rate": 1e-2,
    "final_learning_rate": 1e-2,
    "warmup_steps": 0,
}


@pytest.fixture(scope="module", autouse=True)
def groups() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
            patch.delenv(name, raising=False)
        with process_groups(ParallelLayout(), seed=1):
            yield


@dataclass
class Trained:
    digest: str
    seen: list[int]
    events: list[str]
    guard: dict[str, object]


def batch(number: int, *, poisoned: bool) -> TokenBatch:
    generator = torch.Generator().manual_seed(number)
    mask = torch.ones(2, 16)
    if poisoned:
        mask[0, 3] = torch.nan
    return TokenBatch(
        tokens_BT=torch.randint(64, (2, 17), generator=generator),
        document_ids_BT=torch.zeros(2, 17, dtype=torch.long),
        loss_mask_BT=mask,
    )


def build() -> HybridModel:
    return build_model(MODEL, ParallelLayout(), BuildOptions(window_tokens=16, seed=3))


def trained(folder: Path, *, poisoned: frozenset[int] = frozenset(), **changes: int) -> Trained:
    settings = TrainSettings.model_validate(SETTINGS | changes)
    store = LocalStore(folder / "store")
    spec = StageSpec(
        run="r1", stage="pretrain", fingerprint="ab" * 32, attempt="0001-aa", fence=1,
        store_url=store.url, seed=1, order=("pretrain",), settings=settings.model_dump(),
        all_settings={}, model=MODEL.model_dump(), layout=ParallelLayout().model_dump(), parents={},
    )  # fmt: skip
    context = StageContext(spec, store, scratch=folder / "scratch", rank=0)
    context.barrier = torch.distributed.barrier
    model, seen = build(), []

    def batch_of(number: int, _rank: int, _world: int) -> TokenBatch:
        seen.append(number)
        return batch(number, poisoned=number in poisoned)

    train(context, Trainer(model, settings), settings, batch_of)
    lines = [json.loads(x) for x in (context.outputs / "metrics.jsonl").read_text().splitlines()]
    guard = json.loads((context.outputs / "guard.json").read_text())
    events = [line["event"] for line in lines if "event" in line]
    return Trained(digest=weights_digest(model), seen=seen, events=events, guard=guard)


def test_a_bad_batch_leaves_no_trace_in_the_weights(tmp_path: Path) -> None:
    disturbed = trained(tmp_path / "one", poisoned=frozenset({3}))
    model, settings = build(), TrainSettings.model_validate(SETTINGS)
    trainer = Trainer(model, settings)
    for number in (0, 1, 2, 4, 5, 0):
        trainer.step(to_micro_batches(batch(number, poisoned=False), 1), learning_rate=1e-2)

    assert disturbed.seen == [0, 1, 2, 3, 4, 5, 0]
    assert disturbed.events == ["skip"]
    assert disturbed.digest == weights_digest(model)


def test_bad_batches_in_a_row_undo_everything_since_the_checkpoint(tmp_path: Path) -> None:
    disturbed = trained(tmp_path, poisoned=frozenset({3, 4}), steps=8)

    assert disturbed.seen == [0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2]
    assert disturbed.events == ["skip", "roll_back"]
    assert (disturbed.guard["skipped"], disturbed.guard["rollbacks"]) == (2, 1)


def test_training_that_never_recovers_fails_and_says_so(tmp_path: Path) -> None:
    with pytest.raises(StageFailedError, match="after 1 returns to a checkpoint"):
        trained(tmp_path, poisoned=frozenset(range(2, 6)), rollbacks_allowed=1)


def test_norms_by_layer_add_up_to_the_norm_of_all_gradients() -> None:
    settings = TrainSettings.model_validate(SETTINGS)
    trainer = Trainer(build(), settings)
    batches = to_micro_batches(batch(0, poisoned=False), 1)
    report = trainer.step(batches, learning_rate=1e-2, with_layer_norms=True)

    norms = report.layer_norms
    assert norms is not None
    assert len(norms.layers) == MODEL.num_layers
    assert min(*norms.layers, norms.embedding, norms.head) > 0
    squares = sum(norm**2 for norm in (*norms.layers, norms.embedding, norms.head))
    assert squares**0.5 == pytest.approx(report.gradient_norm, rel=1e-5)


def test_expert_load_is_the_busiest_expert_over_the_mean_and_starts_anew_when_taken() -> None:
    settings = TrainSettings.model_validate(SETTINGS)
    model = build()
    trainer, routed = Trainer(model, settings), []
    model.decoder.layers[1].mlp.router.register_forward_hook(
        lambda _m, _i, outputs: routed.append(outputs[1].sum(0).double())
    )
    batches = to_micro_batches(batch(0, poisoned=False), 2)
    trainer.step(batches, learning_rate=1e-2)

    counts = torch.stack(routed).sum(0)
    assert trainer.expert_load.take()[1] == pytest.approx(float(counts.max() / counts.mean()))
    assert trainer.expert_load.take() == [0.0, 0.0]


def test_weights_that_are_not_finite_are_never_written() -> None:
    model = build()
    with torch.no_grad():
        next(model.parameters()).view(-1)[5] = torch.nan
    with pytest.raises(StageFailedError, match="not finite: embedding"):
        check_finite(model)
