"""What each stage's result depends on, as fingerprints; and what changed, as names. No I/O.

Where a stage runs (layout, launcher, paths) and settings marked `WHERE` never enter.
"""

from collections.abc import Mapping
from typing import Any

from m1.flows.preset import Preset
from m1.stages.contract import Identity
from m1.stages.registry import kind_of
from m1.stages.settings import CurateSettings, StageSettings


def bears_identity(settings: StageSettings, name: str) -> bool:
    """Whether changing the setting `name` changes the result."""
    extra = type(settings).model_fields[name].json_schema_extra
    return not (isinstance(extra, dict) and extra.get("identity") is False)


def identity_settings(settings: StageSettings) -> dict[str, Any]:
    """The settings that bear identity, as JSON values."""
    values = settings.model_dump(mode="json")
    return {name: value for name, value in values.items() if bears_identity(settings, name)}


def stage_identity(preset: Preset, stage: str, parents: Mapping[str, str]) -> Identity:
    """Identity of `stage`, given the commit digests of its parents."""
    kind, settings = kind_of(stage), preset.settings[stage]
    model = preset.model.model_dump(mode="json")
    if isinstance(settings, CurateSettings):
        # ours: the corpus depends on the tokenizer's size alone, so a fork with another model
        # may keep it
        model = {"vocabulary_size": preset.model.vocabulary_size}
    return Identity(
        stage=stage,
        kind_version=kind.version,
        settings=identity_settings(settings),
        model=model,
        seed=preset.seed,
        recipe_digest=recipe_digest(settings),
        parents=dict(parents),
    )


def recipe_digest(settings: StageSettings) -> str | None:
    """Digest of the data recipe of a curate stage; None for the others.

    Raises:
        InvalidSettingError: no such recipe.
    """
    if not isinstance(settings, CurateSettings):
        return None
    from m1.data_recipes.recipe import load_recipe

    return str(load_recipe(settings.recipe).digest)


def identity_changes(old: Preset, new: Preset) -> dict[str, tuple[object, object]]:
    """Dotted names of what bears identity and differs: name -> (old, new)."""
    before, after = _flat(old), _flat(new)
    names = sorted(before.keys() | after.keys())
    return {n: (before.get(n), after.get(n)) for n in names if before.get(n) != after.get(n)}


def first_stage_touched(changes: Mapping[str, object], order: tuple[str, ...]) -> str:
    """The first stage, in the order of the run, whose result the changes alter."""
    touched = {_touched(name, order) for name in changes}
    return next(stage for stage in order if stage in touched or stage == order[-1])


def _touched(name: str, order: tuple[str, ...]) -> str:
    section = name.split(".", 1)[0]
    if section in order:
        return section
    trains = next((stage for stage in order if stage != "curate"), order[0])
    is_model = section == "model" and name != "model.vocabulary_size"
    return trains if is_model or name == "run.order" else order[0]


def _flat(preset: Preset) -> dict[str, object]:
    values: dict[str, object] = {"run.seed": preset.seed, "run.order": list(preset.order)}
    values |= {f"model.{n}": v for n, v in preset.model.model_dump(mode="json").items()}
    for stage, settings in preset.settings.items():
        for name, value in identity_settings(settings).items():
            _flatten(values, f"{stage}.{name}", value)
    return values


def _flatten(values: dict[str, object], name: str, value: object) -> None:
    if isinstance(value, dict):
        for part, inner in value.items():
            _flatten(values, f"{name}.{part}", inner)
    else:
        values[name] = value
