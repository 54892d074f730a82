"""What a setting accepts, in words: ranges, choices, known names with the nearest. No parsing.

Turns pydantic's complaints into the one error a person gets: field, value, accepted.
"""

import difflib
import re
from collections.abc import Iterable, Mapping
from typing import Any, Literal, TypeVar, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from m1.infra.errors import InvalidSettingError

_SIGNS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
_NAMED = re.compile(r"^(?:Value error, )?(\w+) = (\S+) ((?:must|exceeds) .*)$", re.DOTALL)
ModelType = TypeVar("ModelType", bound=BaseModel)


def known_names(value: str, names: Iterable[str]) -> str:
    """The list of names, with the one that was probably meant."""
    listed = sorted(names)
    nearest = difflib.get_close_matches(value, listed, n=1, cutoff=0.5)
    meant = f" (did you mean {nearest[0]!r}?)" if nearest else ""
    return ", ".join(listed) + meant


def unknown_name(field: str, value: str, names: Iterable[str]) -> InvalidSettingError:
    """The error for a name that nobody knows."""
    return InvalidSettingError(field=field, value=value, accepted=known_names(value, names))


def range_in_words(field: FieldInfo) -> str:
    """Type, bounds or choices of a field, such as `float > 0, <= 10`."""
    choices = _choices(field.annotation)
    if choices:
        return " or ".join(repr(choice) for choice in choices)
    bounds = [
        f"{sign} {getattr(limit, name)}"
        for limit in field.metadata
        for name, sign in _SIGNS.items()
        if hasattr(limit, name)
    ]
    return " ".join([_type_in_words(field.annotation), ", ".join(bounds)]).strip()


def validated(model: type[ModelType], values: Mapping[str, Any], *, prefix: str) -> ModelType:
    """`model` built from `values`.

    Raises:
        InvalidSettingError: naming `<prefix>.<field>`, the value and what is accepted.
    """
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        raise _translated(model, error, prefix) from error


def _translated(model: type[BaseModel], error: ValidationError, prefix: str) -> InvalidSettingError:
    first = error.errors(include_url=False)[0]
    location = [str(part) for part in first["loc"]]
    owner, name = _owner(model, location)
    dotted = ".".join([prefix, *location])
    if first["type"] == "extra_forbidden":
        return InvalidSettingError(
            field=dotted, value=first["input"], accepted=_names_of(owner, name)
        )
    named = _NAMED.match(first["msg"])
    if named and not location:
        return InvalidSettingError(
            field=f"{prefix}.{named[1]}", value=_number(named[2]), accepted=named[3]
        )
    accepted = range_in_words(owner.model_fields[name]) if name in owner.model_fields else ""
    return InvalidSettingError(
        field=dotted, value=first["input"], accepted=accepted or first["msg"]
    )


def _names_of(owner: type[BaseModel], name: str) -> str:
    return "one of " + known_names(name, owner.model_fields)


def _number(text: str) -> object:
    return int(text) if text.isdigit() else text


def _owner(model: type[BaseModel], location: list[str]) -> tuple[type[BaseModel], str]:
    """The (nested) model that holds the last named field of `location`, and that name."""
    owner = model
    for index, part in enumerate(location[:-1]):
        field = owner.model_fields.get(part)
        nested = _nested_model(field.annotation) if field else None
        if nested is None:
            rest = location[index + 1 :]
            return owner, part if part in owner.model_fields else rest[-1]
        owner = nested
    return owner, _last_name(owner, location)


def _last_name(owner: type[BaseModel], location: list[str]) -> str:
    return next((p for p in reversed(location) if p in owner.model_fields), (location or [""])[-1])


def _nested_model(annotation: Any) -> type[BaseModel] | None:
    for candidate in (annotation, *get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None


def _choices(annotation: Any) -> tuple[Any, ...]:
    return get_args(annotation) if get_origin(annotation) is Literal else ()


def _type_in_words(annotation: Any) -> str:
    if get_origin(annotation) is dict:
        return "values by name, such as {name: value}"
    if isinstance(annotation, type):
        return {"int": "whole number", "float": "number", "str": "text"}.get(
            annotation.__name__, annotation.__name__
        )
    return str(annotation).replace("typing.", "")
