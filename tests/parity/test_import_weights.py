"""A published folder as the starting weights of a Megatron model."""

from pathlib import Path

import pytest
import torch

from m1.infra.errors import BadInputError
from m1.model.config import ModelConfig, ParallelLayout
from m1.model.decode_network import weight_shapes
from m1.model.hf_weights import export_hugging_face

pytestmark = pytest.mark.filterwarnings(
    # megatron-core says on import which optional accelerators are absent
    "ignore::UserWarning:megatron",
    "ignore::DeprecationWarning",
)

SHAPE = ModelConfig(
    num_layers=5, softmax_every=3, hidden_size=32, num_heads=4, head_width=8,
    num_key_value_heads=2, num_experts=4, experts_per_token=2, expert_hidden_size=24,
    vocabulary_size=97, rotary_width=4, rotary_base=1000.0,
)  # fmt: skip


@pytest.fixture
def weights() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(4)
    return {
        name: torch.randn(shape, generator=generator) * 0.15 + (len(shape) == 1)
        for name, shape in weight_shapes(SHAPE).items()
    }


@pytest.mark.parametrize("layout", ["transformers", "m1"])
def test_every_weight_of_the_model_is_that_of_the_folder(
    layout: str, weights: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    from m1.model.process_groups import process_groups
    from m1.model.spec import BuildOptions, build_model
    from m1.stages.import_weights import import_weights

    export_hugging_face(
        weights, SHAPE, tmp_path / "hf", dtype=torch.float32, rotary_base=1000.0,
        window_tokens=64, layout=layout,
    )  # fmt: skip
    with process_groups(ParallelLayout(), seed=0):
        model = build_model(SHAPE, ParallelLayout(), BuildOptions())
        import_weights(model, SHAPE, tmp_path / "hf")

        found = dict(model.named_parameters())
        assert set(found) == set(weights)
        for name, weight in weights.items():
            assert torch.equal(found[name], weight), name


def test_a_folder_of_another_model_is_refused(
    weights: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    from m1.model.process_groups import process_groups
    from m1.model.spec import BuildOptions, build_model
    from m1.stages.import_weights import import_weights

    export_hugging_face(
        weights, SHAPE, tmp_path / "hf", dtype=torch.float32, rotary_base=1000.0, window_tokens=64
    )
    other = SHAPE.model_copy(update={"expert_hidden_size": 16})
    with process_groups(ParallelLayout(), seed=0):
        model = build_model(other, ParallelLayout(), BuildOptions())
        with pytest.raises(BadInputError, match="shape"):
            import_weights(model, other, tmp_path / "hf")
