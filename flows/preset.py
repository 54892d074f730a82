"""Presets: one YAML file each, resolved into settings of every stage. Launches nothing.

A preset file holds

    description: one line
    extends: other preset            (optional; this file's values win)
    run:      {seed: 1, order: default | paper | [stage, ...]}
    model:    {ModelConfig}
    layout:   {ParallelLayout}
    layouts:  {<stage>: {ParallelLayout}}      what a stage changes of `layout`
    defaults: {train: {...}, <kind>: {...}}    settings shared by all stages of a kind
    stages:   {<stage>: {...}}                 settings of one stage; the most specific wins

`paper` is the order of the M1 paper (extend before sft), also as `--set run.order=paper`.
"""

import copy
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from m1.flows.accepted import unknown_name, validated
from m1.infra.errors import InvalidSettingError, UsageError
from m1.infra.strict_yaml import parse_mapping, parse_yaml
from m1.model.config import ModelConfig, ParallelLayout
from m1.model.layout_check import check_layout, check_window
from m1.stages.registry import DEFAULT_ORDER, KINDS, kind_of
from m1.stages.settings import StageSettings, TrainSettings

PRESETS_DIRECTORY = Path(__file__).parent / "presets"
PAPER_ORDER = (
    "curate",
    "pretrain",
    "extend-32k",
    "extend-128k",
    "extend-512k",
    "extend-1m",
    "sft",
    "reinforce-40k",
    "reinforce-80k",
    "evaluate",
    "export",
)
NAMED_ORDERS: Mapping[str, Sequence[str]] = {"default": DEFAULT_ORDER, "paper": PAPER_ORDER}
_SECTIONS = (
    "description", "extends", "run", "model", "layout", "layouts", "defaults", "stages",
)  # fmt: skip
_RUN_FIELDS = ("seed", "order")
_MAX_SEED = 2**31 - 1
_ANY_TRAINING = "train"

Document = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """Everything a run does, resolved: the settings of each stage of its order."""

    name: str
    description: str
    seed: int
    order: tuple[str, ...]
    model: ModelConfig
    layout: ParallelLayout
    settings: Mapping[str, StageSettings]
    layout_changes: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)

    def layout_of(self, stage: str) -> ParallelLayout:
        """How the job of `stage` is spread over ranks."""
        changes = self.layout_changes.get(stage, {})
        return ParallelLayout.model_validate({**self.layout.model_dump(), **changes})

    def to_document(self) -> Document:
        """Plain JSON values, in the form of a preset file without defaults."""
        return {
            "description": self.description,
            "run": {"seed": self.seed, "order": list(self.order)},
            "model": self.model.model_dump(mode="json"),
            "layout": self.layout.model_dump(mode="json"),
            "layouts": {stage: dict(changes) for stage, changes in self.layout_changes.items()},
            "stages": {s: self.settings[s].model_dump(mode="json") for s in self.order},
        }


def preset_names(directory: Path = PRESETS_DIRECTORY) -> tuple[str, ...]:
    """Names of the presets that come with the package."""
    return tuple(sorted(path.stem for path in directory.glob("*.yaml")))


def load_preset(
    name: str, overrides: Sequence[str] = (), *, directory: Path = PRESETS_DIRECTORY
) -> Preset:
    """The preset `name` with `overrides` such as `pretrain.steps=10` applied.

    Raises:
        InvalidSettingError: unknown preset, stage or setting, or a value out of range.
    """
    document = _extended(name, directory, seen=())
    return resolve(name, _overridden(document, overrides))


def apply_overrides(preset: Preset, overrides: Sequence[str]) -> Preset:
    """`preset` with `path=value` settings replaced.

    Raises:
        InvalidSettingError: a path or value that is not accepted.
    """
    if not overrides:
        return preset
    return resolve(preset.name, _overridden(preset.to_document(), overrides))


def resolve(name: str, document: Mapping[str, Any]) -> Preset:
    """Validate a whole preset document.

    Raises:
        InvalidSettingError: naming the dotted field, its value and what is accepted.
    """
    _check_names(name, document, _SECTIONS)
    run = _section(document, "run")
    order = _checked_order(run.get("order", "default"))
    _check_stage_names(_section(document, "stages"), order)
    settings = {stage: _stage_settings(document, stage) for stage in order}
    _check_families(settings)
    preset = Preset(
        name=name,
        description=str(document.get("description", "")),
        seed=_checked_seed(run),
        order=order,
        model=validated(ModelConfig, _section(document, "model"), prefix="model"),
        layout=validated(ParallelLayout, _section(document, "layout"), prefix="layout"),
        settings=settings,
        layout_changes=_layout_changes(document, order),
    )
    _check_layout(preset)
    return preset


def _check_layout(preset: Preset) -> None:
    """Ranks must be able to share the model, and every training window, evenly."""
    check_layout(preset.model, preset.layout)
    for stage, settings in preset.settings.items():
        if isinstance(settings, TrainSettings):
            check_window(preset.layout, settings.window_tokens, field=f"{stage}.window_tokens")


# ---- files -------------------------------------------------------------------------------------


def _extended(name: str, directory: Path, *, seen: tuple[str, ...]) -> Document:
    if name not in preset_names(directory):
        raise unknown_name("preset", name, preset_names(directory))
    if name in seen:
        raise InvalidSettingError(
            field=f"{seen[0]}.extends", value=name, accepted="presets that do not form a circle"
        )
    document = parse_mapping((directory / f"{name}.yaml").read_text("utf-8"), source=f"{name}.yaml")
    parent = document.pop("extends", None)
    if parent is None:
        return document
    return merged(_extended(str(parent), directory, seen=(*seen, name)), document)


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> Document:
    """Both, mapping by mapping; where both have a value, `above` wins."""
    result = dict(copy.deepcopy(dict(below)))
    for key, value in above.items():
        old = result.get(key)
        both = isinstance(old, dict) and isinstance(value, dict)
        result[key] = merged(old, value) if both else copy.deepcopy(value)  # type: ignore[arg-type]
    return result


# ---- overrides ---------------------------------------------------------------------------------


def _overridden(document: Document, overrides: Iterable[str]) -> Document:
    result = copy.deepcopy(document)
    # The order first: it decides which stages may be named by the others.
    for override in sorted(overrides, key=lambda text: not text.startswith("run.order=")):
        path, value = split_override(override)
        _set(result, path, value)
    return result


def split_override(text: str) -> tuple[tuple[str, ...], Any]:
    """`stage.setting=value` as path and value.

    Raises:
        InvalidSettingError: not of this form.
    """
    dotted, sign, value = text.partition("=")
    path = tuple(dotted.strip().split("."))
    if not sign or len(path) < 2 or not all(path):
        raise InvalidSettingError(
            field="--set", value=text, accepted="path=value, such as pretrain.learning_rate=1e-3"
        )
    try:
        return path, parse_yaml(value, source=f"--set {dotted}")
    except UsageError as error:
        raise InvalidSettingError(field=dotted, value=value, accepted="a YAML value") from error


def _set(document: Document, path: tuple[str, ...], value: Any) -> None:
    section = path[0]
    if section in ("run", "model", "layout", "layouts"):
        _assign(document.setdefault(section, {}), path, value)
        return
    order = _checked_order(_section(document, "run").get("order", "default"))
    if section not in order:
        raise unknown_name("setting", ".".join(path), ["run", "model", "layout", "layouts", *order])
    stages = document.setdefault("stages", {})
    if len(path) > 2:
        resolved = _stage_settings(document, section).model_dump(mode="json")
        own = stages.setdefault(section, {})
        if path[1] in resolved:
            own[path[1]] = resolved[path[1]]
    _assign(stages.setdefault(section, {}), path, value)


def _assign(target: Document, path: tuple[str, ...], value: Any) -> None:
    """Put `value` where `path` says, below the section that `target` is."""
    for name in path[1:-1]:
        if not isinstance(target.setdefault(name, {}), dict):
            raise InvalidSettingError(
                field=".".join(path), value=value, accepted=f"{name} has no settings inside"
            )
        target = target[name]
    target[path[-1]] = value


# ---- checks ------------------------------------------------------------------------------------


def _check_names(prefix: str, document: Mapping[str, Any], known: Sequence[str]) -> None:
    for name in document:
        if name not in known:
            raise unknown_name(f"preset {prefix}", name, known)


def _section(document: Mapping[str, Any], name: str) -> Document:
    value = document.get(name)
    if value is not None and not isinstance(value, dict):
        raise InvalidSettingError(field=name, value=value, accepted="settings by name")
    return dict(value or {})


def _checked_seed(run: Mapping[str, Any]) -> int:
    for name in run:
        if name not in _RUN_FIELDS:
            raise unknown_name("setting", f"run.{name}", [f"run.{known}" for known in _RUN_FIELDS])
    seed = run.get("seed", 1)
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed <= _MAX_SEED:
        raise InvalidSettingError(
            field="run.seed", value=seed, accepted=f"whole number >= 0, <= {_MAX_SEED}"
        )
    return seed


def _checked_order(value: Any) -> tuple[str, ...]:
    names = NAMED_ORDERS.get(value, value.split(",")) if isinstance(value, str) else value
    if not isinstance(names, Sequence) or not names:
        raise InvalidSettingError(
            field="run.order", value=value, accepted="default, paper or a list of stages"
        )
    order = tuple(str(name).strip() for name in names)
    for index, stage in enumerate(order):
        _check_place(stage, order[:index])
    return order


def _check_place(stage: str, earlier: tuple[str, ...]) -> None:
    kind = kind_of(stage)
    if stage in earlier:
        raise InvalidSettingError(field="run.order", value=stage, accepted="each stage once")
    if kind.name != "curate" and "curate" not in earlier:
        raise InvalidSettingError(field="run.order", value=stage, accepted="curate before it")
    has_weights = any(kind_of(name).gives_weights for name in earlier)
    if kind.name not in ("curate", "pretrain") and not has_weights:
        raise InvalidSettingError(field="run.order", value=stage, accepted="pretrain before it")


def _check_stage_names(stages: Mapping[str, Any], order: tuple[str, ...]) -> None:
    for stage in stages:
        if stage not in order and not any(kind.matches(stage) for kind in KINDS):
            raise unknown_name("stage", stage, order)


def _stage_settings(document: Mapping[str, Any], stage: str) -> StageSettings:
    kind = kind_of(stage)
    defaults = _section(document, "defaults")
    known = [_ANY_TRAINING, *(k.name for k in KINDS)]
    for name in defaults:
        if name not in known:
            raise unknown_name("defaults", name, known)
    values: Document = {}
    if issubclass(kind.settings, TrainSettings):
        values = _section(defaults, _ANY_TRAINING)
    values = {**values, **_section(defaults, kind.name)}
    values |= _section(_section(document, "stages"), stage)
    return validated(kind.settings, values, prefix=stage)


def _layout_changes(document: Mapping[str, Any], order: tuple[str, ...]) -> dict[str, Document]:
    """What each stage changes of the run's layout, checked together with it."""
    every = _section(document, "layout")
    changes = _section(document, "layouts")
    _check_stage_names(changes, order)
    for stage in changes:
        own = _section(changes, stage)
        validated(ParallelLayout, {**every, **own}, prefix=f"layouts.{stage}")
    return {stage: _section(changes, stage) for stage in changes if stage in order}


def _check_families(settings: Mapping[str, StageSettings]) -> None:
    """Every task family that a stage names must exist."""
    from m1.data_recipes.tasks.families import FAMILIES

    for stage, values in settings.items():
        for field in ("tasks", "later_tasks"):
            for family in getattr(values, field, {}):
                if family not in FAMILIES:
                    raise unknown_name(f"{stage}.{field}", family, FAMILIES)
