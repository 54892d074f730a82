"""The losses of the toy preset's model over a dozen steps, as JSON. Started by `test_toy_losses`.

On a GPU if one is visible, else on the CPU; the same seed and the same windows either way.
Holds no tests.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
import yaml

from m1.model.config import ModelConfig, ParallelLayout
from m1.model.process_groups import process_groups
from m1.model.spec import BuildOptions, build_model
from m1.stages.settings import TrainSettings
from m1.stages.training.trainer import Trainer

PRESET = Path(__file__).parents[2] / "flows" / "presets" / "toy.yaml"
STEPS = 12
WINDOW_TOKENS = 256


def windows(vocabulary: int) -> Iterator[dict[str, torch.Tensor]]:
    """Noisy counting by threes, in packed documents of 100 tokens."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator = torch.Generator().manual_seed(3)
    place = torch.arange(WINDOW_TOKENS + 1)
    for _ in range(STEPS):
        start = torch.randint(0, vocabulary, (4, 1), generator=generator)
        noise = torch.randint(0, 2, (4, WINDOW_TOKENS + 1), generator=generator)
        rows = (start + 3 * place + noise) % vocabulary
        batch = {
            "tokens_BT": rows[:, :-1],
            "targets_BT": rows[:, 1:],
            "loss_mask_BT": torch.ones(4, WINDOW_TOKENS),
            "document_ids_BT": (place[:-1] // 100).expand(4, -1),
        }
        yield {name: tensor.to(device) for name, tensor in batch.items()}


def main() -> None:
    precision = sys.argv[1]
    model = ModelConfig(**yaml.safe_load(PRESET.read_text())["model"])
    options = BuildOptions(
        window_tokens=WINDOW_TOKENS,
        parameter_type=torch.bfloat16 if precision == "bf16" else torch.float32,
    )
    with process_groups(ParallelLayout(), seed=1):
        network = build_model(model, ParallelLayout(), options)
        trainer = Trainer(network, TrainSettings(precision=precision))
        losses = [
            trainer.step([batch], learning_rate=5e-3).loss
            for batch in windows(model.vocabulary_size)
        ]
    sys.stdout.write(json.dumps(losses) + "\n")


if __name__ == "__main__":
    main()
