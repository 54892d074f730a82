"""Opens what a stage on weights needs: process groups, model, parent's weights, corpus."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import m1.model.compat  # noqa: F401  (patches megatron-core before it is imported)

# isort: split

import torch
from megatron.core import parallel_state

from m1.data_recipes.tokenizer import Tokenizer
from m1.infra.errors import BadInputError, StageFailedError
from m1.model.process_groups import process_groups
from m1.model.spec import BuildOptions, HybridModel, build_model
from m1.stages.context import StageContext
from m1.stages.settings import TrainSettings
from m1.stages.training.checkpoint_format import load_weights, save_weights

WEIGHTS = "weights/"
MODEL_RECORD = "model.json"


@contextmanager
def open_model(
    context: StageContext, options: BuildOptions, *, weights_of: str | None
) -> Iterator[HybridModel]:
    """The model of this rank, holding the weights of a parent stage or starting weights."""
    _use_all_cores()
    with process_groups(context.layout, seed=context.spec.seed):
        context.barrier = torch.distributed.barrier
        context.report(phase="loading")
        model = build_model(context.model, context.layout, options)
        if weights_of is not None:
            load_weights(model, context.fetch(weights_of, WEIGHTS))
        yield model


def _use_all_cores() -> None:
    """Ranks of one machine share its cores evenly, unless OMP_NUM_THREADS says otherwise.

    Said to torch, because the process that this one was forked from has read the variable already.
    """
    if torch.cuda.is_available():
        return
    local_ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    share = max(1, len(os.sched_getaffinity(0)) // local_ranks)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", share)))


def build_options(context: StageContext, settings: TrainSettings) -> BuildOptions:
    """How this stage builds the model."""
    return BuildOptions(
        rotary_base=settings.rotary_base,
        window_tokens=settings.window_tokens,
        parameter_type=torch.bfloat16 if settings.precision == "bf16" else torch.float32,
        router_auxiliary_coefficient=settings.router_auxiliary_coefficient,
        seed=context.spec.seed,
    )


def hand_over_weights(
    context: StageContext, model: HybridModel, *, rotary_base: float, window_tokens: int
) -> str:
    """Put the final weights, and what is needed to use them, among the outputs.

    Returns:
        A digest of all weights: equal digests mean bit-identical training.
    """
    context.report(phase="saving")
    check_finite(model)
    save_weights(model, context.outputs / WEIGHTS)
    context.write_output_json(
        MODEL_RECORD,
        {
            "model": context.model.model_dump(mode="json"),
            "rotary_base": rotary_base,
            "window_tokens": window_tokens,
        },
    )
    context.barrier()
    return weights_digest(model)


def check_finite(model: HybridModel) -> None:
    """Weights that are not numbers are never written, so they can never be committed.

    Raises:
        StageFailedError: on every rank, when any rank holds such a weight.
    """
    bad = [name for name, p in model.named_parameters() if not bool(torch.isfinite(p).all())]
    if agree(bool(bad)):
        raise StageFailedError(f"weights are not finite: {', '.join(bad) or 'on another rank'}")


def weights_digest(model: HybridModel) -> str:
    """Sha256 over names and bytes of the weights of all ranks, in rank order."""
    own = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        own.update(name.encode())
        own.update(parameter.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    digests = [""] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(digests, own.hexdigest())
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def data_rank() -> tuple[int, int]:
    """This rank's number among the data-parallel ranks, and their count."""
    return (
        parallel_state.get_data_parallel_rank(),
        parallel_state.get_data_parallel_world_size(),
    )


def agree(flag: bool) -> bool:
    """Whether any rank says yes."""
    if torch.distributed.get_world_size() == 1:
        return flag
    device = torch.cuda.current_device() if torch.cuda.is_available() else "cpu"
    answer = torch.tensor(int(flag), device=device)
    torch.distributed.all_reduce(answer, op=torch.distributed.ReduceOp.MAX)
    return bool(answer.item())


def check_batch(settings: TrainSettings) -> int:
    """Micro batches per rank and step.

    Raises:
        BadInputError: windows per step do not divide.
    """
    _, ranks = data_rank()
    unit = ranks * settings.micro_batch_windows
    if settings.windows_per_step % unit:
        raise BadInputError(
            f"windows_per_step = {settings.windows_per_step} must be a multiple of "
            f"{ranks} data-parallel ranks x micro_batch_windows = {settings.micro_batch_windows}"
        )
    return settings.windows_per_step // unit


def open_tokenizer(context: StageContext) -> Tokenizer:
    """The tokenizer that curate trained.

    Raises:
        BadInputError: its vocabulary is larger than the model's.
    """
    directory: Path = context.fetch("curate", "tokenizer/")
    tokenizer = Tokenizer.load(directory / "tokenizer.model")
    if tokenizer.vocabulary_size > context.model.vocabulary_size:
        raise BadInputError(
            f"the tokenizer has {tokenizer.vocabulary_size} entries, "
            f"model.vocabulary_size is {context.model.vocabulary_size}"
        )
    return tokenizer
