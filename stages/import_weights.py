"""Published weights into a model that may be spread over ranks.

Every rank reads the folder one weight at a time and keeps its own part of it, so a rank needs no
more memory than its model and one weight. Which part that is, Megatron's sharded checkpoint
description says: the same one that moves checkpoints between layouts.
"""

from pathlib import Path

import m1.model.compat  # noqa: F401  (patches megatron-core before it is imported)

# isort: split

import torch
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor

from m1.model.config import ModelConfig
from m1.model.hf_weights import stream_hugging_face
from m1.model.spec import HybridModel


@torch.no_grad()
def import_weights(model: HybridModel, config: ModelConfig, folder: Path) -> None:
    """Replace the weights of this rank by those of a folder of either published layout.

    Raises:
        BadInputError: the folder is not whole, not sound, or of another model.
    """
    wanted = {
        part.key: part
        for part in nested_values(model.sharded_state_dict())
        if isinstance(part, ShardedTensor)
    }
    parameters = dict(model.named_parameters())
    dtype = next(iter(parameters.values())).dtype
    filled = set()
    for name, weight in stream_hugging_face(folder, config, dtype=dtype, only=wanted):
        part = wanted[name]
        assert part.data is not None
        part.data.copy_(weight[part.global_slice()].view_as(part.data))
        filled.add(name)
    missed = set(wanted) - filled
    assert not missed, f"no weight of the folder is {sorted(missed)[:3]}"
