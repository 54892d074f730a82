"""Recipes: what goes in, as strict YAML. Unknown keys, aliases and duplicate keys are errors.

A recipe holds no code: a source names one of the readers in readers.py. `extends: NAME` takes
another recipe first; mappings merge, everything else is replaced.
"""

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from m1.data_recipes.document import Kind
from m1.infra.canonical_json import canonical_json, sha256_hex
from m1.infra.errors import InvalidSettingError, UsageError
from m1.infra.strict_yaml import parse_mapping

RECIPES = Path(__file__).parent / "recipes"
MAXIMUM_RECIPE_BYTES = 256 * 1024
MAXIMUM_EXTENDS = 8

ReaderName = Literal["text", "html", "docstrings", "doctests", "topics", "metadata"]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Source(_Strict):
    """Where documents of one kind come from."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,63}$")
    kind: Kind
    reader: ReaderName
    location: str = Field(pattern=r"^(corpus|stdlib|site-packages(/[A-Za-z0-9_.-]+)?)$")
    licence: str = Field(
        default="from-metadata", description="SPDX name; or read from the package."
    )
    include: tuple[str, ...] = Field(min_length=1)
    exclude: tuple[str, ...] = ()
    maximum_bytes: int = Field(ge=1, le=1 << 40, description="UTF-8 bytes of text taken.")


class Filter(_Strict):
    """Thresholds of one kind; a document outside them is dropped with the rule's name."""

    minimum_characters: int = Field(default=0, ge=0)
    minimum_alpha_share: float = Field(default=0.0, ge=0, le=1)
    maximum_repeated_line_share: float = Field(default=1.0, ge=0, le=1)
    maximum_mean_word_characters: float = Field(default=1e9, gt=0)


class NearDuplicates(_Strict):
    """MinHash: `bands` x `rows` hashes over word n-grams."""

    bands: int = Field(default=16, ge=1, le=1024)
    rows: int = Field(default=4, ge=1, le=64)
    ngram_words: int = Field(default=5, ge=1, le=64)
    similarity: float = Field(default=0.8, ge=0, le=1, description="Estimated Jaccard that counts.")


class Heldout(_Strict):
    """What is kept from training for measuring."""

    share: float = Field(default=0.04, ge=0, lt=1)
    long_kind: Kind = "code"
    long_documents: int = Field(default=8, ge=0)
    long_tokens: int = Field(default=10_000, ge=1)


class TaskCounts(_Strict):
    """How many different tasks of one family go into each split."""

    difficulty: int = Field(default=4, ge=1, le=10_000)
    sft: int = Field(default=4096, ge=0)
    reinforce: int = Field(default=2048, ge=0)
    heldout: int = Field(default=256, ge=0)


class Recipe(_Strict):
    """A resolved recipe."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,63}$")
    version: int = Field(default=1, ge=1)
    sources: tuple[Source, ...] = Field(min_length=1)
    folder_sources: tuple[Source, ...] = Field(min_length=1)
    maximum_file_bytes: int = Field(default=8 << 20, ge=1, le=1 << 32)
    filters: dict[Kind, Filter] = Field(default_factory=dict)
    near_duplicates: NearDuplicates = NearDuplicates()
    heldout: Heldout = Heldout()
    tokenizer_sample_bytes: int = Field(default=4_000_000, ge=1)
    tasks: dict[str, TaskCounts] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _names_are_unique(self) -> Self:
        for sources in (self.sources, self.folder_sources):
            names = [source.name for source in sources]
            if len(set(names)) != len(names):
                raise ValueError(f"two sources share a name: {sorted(names)}")
        return self

    @property
    def digest(self) -> str:
        """sha256 of the resolved recipe: part of the stage's identity."""
        return sha256_hex(canonical_json(self.model_dump(mode="json")))


def parse_yaml(body: bytes) -> dict[str, Any]:
    """A mapping from strict YAML.

    Raises:
        InvalidSettingError: too large, not YAML, not a mapping, or with aliases or repeated keys.
    """
    if len(body) > MAXIMUM_RECIPE_BYTES:
        raise InvalidSettingError(
            field="recipe", value=f"{len(body)} bytes", accepted=f"up to {MAXIMUM_RECIPE_BYTES}"
        )
    try:
        return parse_mapping(body.decode("utf-8"), source="recipe")
    except (UsageError, UnicodeDecodeError, TypeError) as error:
        raise InvalidSettingError(field="recipe", value=str(error), accepted="safe YAML") from error


def _path_of(name_or_path: str, *, beside: Path) -> Path:
    is_path = name_or_path.endswith((".yaml", ".yml"))
    path = beside / name_or_path if is_path else RECIPES / f"{name_or_path}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(recipe.stem for recipe in RECIPES.glob("*.yaml")))
        raise InvalidSettingError(
            field="recipe", value=name_or_path, accepted=f"{known}, or the path of a .yaml file"
        )
    return path


def _merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    result = dict(base)
    for key, value in over.items():
        old = result.get(key)
        if isinstance(old, dict) and isinstance(value, dict):
            result[key] = _merged(old, value)
        else:
            result[key] = value
    return result


def _resolved(path: Path, depth: int = 0) -> dict[str, Any]:
    if depth > MAXIMUM_EXTENDS:
        raise InvalidSettingError(
            field="extends", value=path.name, accepted=f"at most {MAXIMUM_EXTENDS} levels"
        )
    with path.open("rb") as stream:
        fields = parse_yaml(stream.read(MAXIMUM_RECIPE_BYTES + 1))
    parent = fields.pop("extends", None)
    if parent is None:
        return fields
    return _merged(_resolved(_path_of(str(parent), beside=path.parent), depth + 1), fields)


def load_recipe(name_or_path: str) -> Recipe:
    """A recipe of ours by name, or one in a file.

    Raises:
        InvalidSettingError: not found, or a field is unknown or out of range.
    """
    fields = _resolved(_path_of(name_or_path, beside=Path()))
    try:
        return Recipe.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        raise InvalidSettingError(
            field="recipe." + ".".join(str(part) for part in first["loc"]),
            value=first.get("input"),
            accepted=first["msg"],
        ) from error
