"""What `m1 plan` looks at: the training stages of a preset, on layouts that can work.

A layout that cannot work is refused with the reason and the nearest one that can.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from m1.flows.preset import Preset, load_preset, split_override
from m1.infra.errors import InvalidSettingError
from m1.model.config import RECOMPUTE_CHOICES, ParallelLayout
from m1.model.cost.layouts import LARGEST_GROWTH, layout_problems, nearest_layout
from m1.model.cost.memory import GPU_BYTES
from m1.model.cost.plan import StageWork
from m1.model.cost.step import StepShape
from m1.stages.settings import ReinforceSettings, TrainSettings

LARGEST_AXIS = 100_000
_LAYOUT_SECTIONS = ("layout", "layouts")


def planned_stages(preset: Preset) -> list[StageWork]:
    """Every stage of the preset that trains, in order."""
    works = (stage_work(preset, stage) for stage in preset.order)
    return [work for work in works if work is not None]


def stage_work(preset: Preset, stage: str) -> StageWork | None:
    """Tokens that a stage trains on and generates; None when it trains nothing.

    A rollout is counted at its whole window: an upper bound.
    """
    settings = preset.settings[stage]
    if not isinstance(settings, TrainSettings):
        return None
    step = step_shape(settings)
    updates = settings.updates_per_step if isinstance(settings, ReinforceSettings) else 1
    tokens = settings.steps * updates * step.windows_per_step * settings.window_tokens
    return StageWork(
        name=stage,
        steps=settings.steps,
        tokens=tokens,
        step=step,
        layout=preset.layout_of(stage),
        generated_tokens=tokens if isinstance(settings, ReinforceSettings) else 0,
        checkpoint_every_steps=settings.checkpoint_every_steps,
    )


def step_shape(settings: TrainSettings) -> StepShape:
    """The batch of one optimizer step; in reinforcement one update of a rollout batch."""
    windows = settings.windows_per_step
    if isinstance(settings, ReinforceSettings):
        rollouts = settings.prompts_per_step * settings.samples_per_prompt
        windows = max(1, rollouts // settings.updates_per_step)
    return StepShape(
        window_tokens=settings.window_tokens,
        windows_per_step=windows,
        micro_batch_windows=min(settings.micro_batch_windows, windows),
        precision=settings.precision,
        is_even=not isinstance(settings, ReinforceSettings),
    )


def load_planned(name: str, overrides: Sequence[str], *, gpu_bytes: int = GPU_BYTES) -> Preset:
    """The preset with its overrides, if every training stage's layout can work.

    Raises:
        InvalidSettingError: a setting that is not accepted, or a layout that cannot work; then
            with the nearest one that can.
    """
    try:
        preset = load_preset(name, overrides)
    except InvalidSettingError as error:
        if error.field.split(".")[0] not in _LAYOUT_SECTIONS:
            raise
        _refuse_unsplittable(name, overrides, gpu_bytes)
        raise
    for stage in planned_stages(preset):
        _refuse(preset, stage, stage.layout.model_dump(), gpu_bytes)
    return preset


def _refuse_unsplittable(name: str, overrides: Sequence[str], gpu_bytes: int) -> None:
    """Name the nearest layout to one that is not even a `ParallelLayout`, if numbers allow."""
    changes = [split_override(text) for text in overrides]
    others = [text for text in overrides if split_override(text)[0][0] not in _LAYOUT_SECTIONS]
    preset = load_preset(name, others)
    for stage in planned_stages(preset):
        wanted = stage.layout.model_dump()
        for path, value in changes:
            if path[:-1] in (("layout",), ("layouts", stage.name)):
                wanted[path[-1]] = value
        if _is_searchable(wanted):
            _refuse(preset, stage, wanted, gpu_bytes)


def _is_searchable(wanted: Mapping[str, Any]) -> bool:
    """Whether all fields are known and each alone is in its range."""
    if wanted.keys() != ParallelLayout.model_fields.keys():
        return False
    whole = [value for name, value in wanted.items() if name != "recompute"]
    ranges_hold = all(type(value) is int and 1 <= value <= LARGEST_AXIS for value in whole)
    return ranges_hold and wanted["recompute"] in RECOMPUTE_CHOICES


def _refuse(preset: Preset, stage: StageWork, wanted: Mapping[str, Any], gpu_bytes: int) -> None:
    problems = layout_problems(preset.model, wanted, stage.step, gpu_bytes=gpu_bytes)
    if not problems:
        return
    nearest = nearest_layout(preset.model, wanted, stage.step, gpu_bytes=gpu_bytes)
    own = stage.name in preset.layout_changes
    section = f"layouts.{stage.name}" if own else "layout"
    raise InvalidSettingError(
        field=f"{stage.name}: {problems[0].field}",
        value=problems[0].value,
        accepted=f"{problems[0].accepted}; {_suggestion(section, wanted, nearest)}",
    )


def _suggestion(section: str, wanted: Mapping[str, Any], nearest: ParallelLayout | None) -> str:
    if nearest is None:
        return f"no layout works, not even on {LARGEST_GROWTH} times as many machines"
    changed = {name: v for name, v in nearest.model_dump().items() if v != wanted[name]}
    sets = " ".join(f"--set {section}.{name}={value}" for name, value in changed.items())
    return f"the nearest layout that works: {sets}"
