"""Finds the final answer in a text, takes its unit off, and refuses what is not worth reading.

Text in, text out, linear in its length: this is what stands before the comparing process.
"""

import re
from dataclasses import dataclass

MAXIMUM_TEXT_CHARACTERS = 1_000_000
MAXIMUM_ANSWER_CHARACTERS = 1000  # ours
MAXIMUM_NESTING = 24  # ours: no sensible final answer goes deeper
_LONG_NUMBER = re.compile(r"[0-9]{100}")  # ours
_BOXED = re.compile(r"\\boxed\s{0,8}\{")
_OPENING, _CLOSING = "([{", ")]}"

# name, then its other spellings; amounts are not converted between units
_UNITS: dict[str, tuple[str, ...]] = {
    "mm": ("millimetre", "millimeter"),
    "cm": ("centimetre", "centimeter"),
    "m": ("metre", "meter"),
    "km": ("kilometre", "kilometer"),
    "g": ("gram",),
    "kg": ("kilogram",),
    "s": ("second", "sec"),
    "min": ("minute",),
    "h": ("hour", "hr"),
    "day": (),
    "m/s": ("mps",),
    "km/h": ("kmh", "kph"),
    "l": ("litre", "liter"),
    "ml": ("millilitre", "milliliter"),
    "cm^2": ("square centimetre", "square centimeter"),
    "m^2": ("square metre", "square meter"),
    "cm^3": ("cubic centimetre", "cubic centimeter"),
    "m^3": ("cubic metre", "cubic meter"),
    "degree": ("deg", r"\circ", "°"),
    "dollar": (r"\$", "$"),
    "euro": ("€",),
}
_UNIT_OF = {
    spelling + ending: unit
    for unit, others in _UNITS.items()
    for spelling in (unit, *others)
    for ending in ("", "s")
}
_WRAPPED = re.compile(r"\\(?:text|mathrm|mbox|operatorname)\s?\{([^{}]{0,40})\}")
_VALUE_AND_UNIT = re.compile(
    r"(?P<value>.*[0-9}\])])(?:\\[,;:! ]|[~ ]|\^)*(?P<unit>\\circ|\\\$|[A-Za-z°€$][A-Za-z/ ]*"
    r"(?:\^\{?[23]\}?)?)"
)


@dataclass(frozen=True, slots=True)
class Quantity:
    """A value in LaTeX and the unit after it, if one was written."""

    value: str
    unit: str | None


def final_answer(text: str) -> str | None:
    r"""The contents of the last `\boxed{...}`, else the whole text; None where not worth reading.

    Too long, nested too deeply, or a last box that is never closed.
    """
    if len(text) > MAXIMUM_TEXT_CHARACTERS:
        return None
    start = 0
    for box in _BOXED.finditer(text):
        start = box.end()
    answer = _until_closed(text, start) if start else text
    return _bounded(answer) if answer is not None else None


def _until_closed(text: str, start: int) -> str | None:
    """What stands from `start` to the brace that closes the one before it."""
    depth, is_escaped = 1, False
    for place in range(start, min(len(text), start + MAXIMUM_ANSWER_CHARACTERS + 1)):
        character = text[place]
        if not is_escaped:
            depth += (character == "{") - (character == "}")
        if depth == 0:
            return text[start:place]
        is_escaped = character == "\\" and not is_escaped
    return None


def _bounded(answer: str) -> str | None:
    answer = answer.strip().strip("$").removesuffix(".").strip()
    answer = answer.removeprefix(r"\(").removesuffix(r"\)").strip()
    is_short = 0 < len(answer) <= MAXIMUM_ANSWER_CHARACTERS and not _LONG_NUMBER.search(answer)
    return answer if is_short and _nesting(answer) <= MAXIMUM_NESTING else None


def _nesting(text: str) -> int:
    """The deepest level of brackets of any kind."""
    depth = deepest = 0
    for character in text:
        depth = max(0, depth + (character in _OPENING) - (character in _CLOSING))
        deepest = max(deepest, depth)
    return deepest


def quantity(answer: str) -> Quantity:
    """The value and its unit, by one spelling; words that are no known unit stay in the value."""
    plain = _WRAPPED.sub(lambda wrapped: " " + wrapped[1].strip(), answer).strip()
    found = _VALUE_AND_UNIT.fullmatch(plain)
    if found is None:
        return Quantity(answer, None)
    spelling = found["unit"].strip().replace("{", "").replace("}", "")
    unit = _UNIT_OF.get(spelling, _UNIT_OF.get(spelling.lower()))
    return Quantity(found["value"].strip(), unit) if unit else Quantity(answer, None)


def units_agree(gold: Quantity, answer: Quantity) -> bool:
    """False only where both state a unit and the units differ."""
    return None in (gold.unit, answer.unit) or answer.unit == gold.unit
