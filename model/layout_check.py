"""Whether a model can be spread over ranks as a layout asks. Plain numbers: imports no torch."""

from collections.abc import Iterable
from math import gcd

from m1.infra.errors import InvalidSettingError
from m1.model.config import ModelConfig, ParallelLayout


def check_layout(model: ModelConfig, layout: ParallelLayout) -> None:
    """Refuse a layout whose ranks cannot share this model evenly.

    Raises:
        InvalidSettingError: naming the axis, its value and every value that would do.
    """
    shared = gcd(model.num_heads, model.num_key_value_heads, model.vocabulary_size)
    if shared % layout.tensor:
        raise InvalidSettingError(
            field="layout.tensor",
            value=layout.tensor,
            accepted=f"{_listed(_divisors(shared))}: what divides num_heads = {model.num_heads}, "
            f"num_key_value_heads = {model.num_key_value_heads} and "
            f"vocabulary_size = {model.vocabulary_size}",
        )
    if layout.pipeline > model.num_layers:
        raise InvalidSettingError(
            field="layout.pipeline",
            value=layout.pipeline,
            accepted=f"1 to num_layers = {model.num_layers}: every rank holds a layer",
        )
    per_stage = layout.world_size // layout.pipeline
    if gcd(model.num_experts, per_stage) % layout.expert:
        raise InvalidSettingError(
            field="layout.expert",
            value=layout.expert,
            accepted=f"{_listed(_divisors(gcd(model.num_experts, per_stage)))}: what divides "
            f"num_experts = {model.num_experts} and the {per_stage} ranks of a pipeline stage",
        )


def window_unit(*, tensor: int, context: int) -> int:
    """Tokens a window must be a multiple of under so many tensor and context ranks.

    Context ranks hold two chunks each; tensor ranks split what a context rank holds evenly.
    """
    return tensor * (2 * context if context > 1 else 1)


def check_window(
    layout: ParallelLayout, window_tokens: int, *, field: str = "window_tokens"
) -> None:
    """Refuse a window that context and tensor ranks cannot share evenly.

    Raises:
        InvalidSettingError: naming `field`, its value and what is accepted.
    """
    unit = window_unit(tensor=layout.tensor, context=layout.context)
    if window_tokens % unit:
        raise InvalidSettingError(
            field=field,
            value=window_tokens,
            accepted=f"a multiple of {unit} under layout.context = {layout.context} "
            f"and layout.tensor = {layout.tensor}",
        )


def _divisors(number: int) -> list[int]:
    return [divisor for divisor in range(1, number + 1) if number % divisor == 0]


def _listed(numbers: Iterable[int]) -> str:
    return ", ".join(map(str, numbers))
