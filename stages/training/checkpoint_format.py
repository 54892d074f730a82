"""What is inside a checkpoint directory: Megatron's distributed format, and how it is read back.

Two kinds: a *resume* checkpoint (weights, optimizer, extra state) and a *weights* directory
(weights only, what one stage hands to the next). Both move between parallel layouts. The format
holds pickles, so a directory is only read after every file matched its recorded digest.
"""

from pathlib import Path
from typing import Any

import m1.model.compat  # noqa: F401  (patches megatron-core before it is imported)

# isort: split

import torch
from megatron.core import dist_checkpointing

from m1.model.compat import checkpoint_writer
from m1.model.spec import HybridModel
from m1.stages.training.trainer import Trainer

OPTIMIZER_FORMAT = {"distrib_optim_sharding_type": "fully_reshardable"}


def save_weights(model: HybridModel, directory: Path) -> None:
    """Write the weights of all ranks below `directory`."""
    checkpoint_writer.install()
    _make(directory)
    dist_checkpointing.save({"model": model.sharded_state_dict()}, str(directory))


def load_weights(model: HybridModel, directory: Path) -> None:
    """Read weights written by `save_weights` or `save_training`, whatever their layout was."""
    template = {"model": model.sharded_state_dict()}
    stored = dist_checkpointing.load(template, str(directory))
    model.load_state_dict(stored["model"])


def save_training(trainer: Trainer, directory: Path) -> None:
    """Write weights and optimizer state of all ranks below `directory`."""
    checkpoint_writer.install()
    _make(directory)
    dist_checkpointing.save(_training_template(trainer, is_loading=False), str(directory))


def load_training(trainer: Trainer, directory: Path) -> None:
    """Read what `save_training` wrote; the next step is the one that would have followed."""
    template = _training_template(trainer, is_loading=True)
    stored = dist_checkpointing.load(template, str(directory))
    trainer.model.load_state_dict(stored["model"])
    trainer.optimizer.load_state_dict(stored["optimizer"])


def _training_template(trainer: Trainer, *, is_loading: bool) -> dict[str, Any]:
    weights = trainer.model.sharded_state_dict()
    optimizer = trainer.optimizer.sharded_state_dict(
        weights, is_loading=is_loading, metadata=OPTIMIZER_FORMAT
    )
    return {"model": weights, "optimizer": optimizer}


def _make(directory: Path) -> None:
    if torch.distributed.get_rank() == 0:
        directory.mkdir(parents=True, exist_ok=True)
    torch.distributed.barrier()
