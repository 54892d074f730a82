"""Puzzles on written arithmetic: countdown, cryptarithm."""

import operator
import random
import re
import string
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Self

from typing_extensions import override

from m1.data_recipes.tasks.answers import labels
from m1.data_recipes.tasks.puzzle import Puzzle

_APPLY: dict[str, Callable[[int, int], int]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
}
_STRENGTH = {"(": 0, "+": 1, "-": 1, "*": 2}
_WORD = re.compile(r"[0-9]{1,4}|[-+*()]")


def _reduce(values: list[int], signs: list[str], strength: int) -> bool:
    """Apply waiting signs at least as strong; False where a number is missing."""
    while signs and _STRENGTH[signs[-1]] >= strength and signs[-1] != "(":
        if len(values) < 2:
            return False
        right = values.pop()
        values.append(_APPLY[signs.pop()](values.pop(), right))
    return True


def value_of(words: list[str]) -> int | None:
    """Value of an infix expression of numbers, `+ - *` and brackets; None where malformed.

    Two stacks and no recursion: nesting costs nothing. What numbers may occur is for the caller
    to check first, which bounds the value.
    """
    values: list[int] = []
    signs: list[str] = []
    wants_number = True
    for word in words:
        if wants_number != (word == "(" or word.isdigit()):
            return None
        if word.isdigit():
            values.append(int(word))
        elif word == "(":
            signs.append(word)
        elif not _reduce(values, signs, 1 if word == ")" else _STRENGTH[word]):
            return None
        elif word != ")":
            signs.append(word)
        elif not signs or signs.pop() != "(":
            return None
        wants_number = word in _STRENGTH
    is_whole = not wants_number and "(" not in signs and _reduce(values, signs, 1)
    return values[0] if is_whole and len(values) == 1 else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Countdown(Puzzle):
    """Reach a target with every number once; `signs` are applied from left to right."""

    SIZE: ClassVar[str] = "numbers to combine"
    numbers: tuple[int, ...]
    signs: str
    target: int
    order: tuple[int, ...]

    @override
    @classmethod
    def draw(cls, rng: random.Random, difficulty: int) -> Self:
        numbers = [rng.randint(1, 25) for _ in range(difficulty + 2)]
        total, signs = numbers[0], ""
        for number in numbers[1:]:
            usable = [s for s in "+-*" if 0 < _APPLY[s](total, number) < 1000]
            signs += rng.choice(usable)
            total = _APPLY[signs[-1]](total, number)
        shuffled = rng.sample(numbers, len(numbers))
        return cls(numbers=tuple(shuffled), signs=signs, target=total, order=tuple(numbers))

    @property
    @override
    def size(self) -> int:
        return len(self.numbers)

    @override
    def prompt(self) -> str:
        return (
            f"Use each of these numbers exactly once, with +, -, * and brackets, to make "
            f"{self.target}: {' '.join(map(str, self.numbers))}\nAnswer with the expression only."
        )

    @override
    def steps(self) -> list[str]:
        lines, total = [], self.order[0]
        for sign, number in zip(self.signs, self.order[1:], strict=True):
            after = _APPLY[sign](total, number)
            lines.append(f"{total} {sign} {number} gives {after}")
            total = after
        return lines

    @override
    def answer(self) -> str:
        text = str(self.order[0])
        for sign, number in zip(self.signs, self.order[1:], strict=True):
            text = f"({text} {sign} {number})"
        return text

    @override
    def accepts(self, text: str) -> bool:
        words = _WORD.findall(text)
        is_clean = "".join(words) == "".join(text.split())
        used = sorted(int(word) for word in words if word.isdigit())
        return is_clean and used == sorted(self.numbers) and value_of(words) == self.target


@dataclass(frozen=True, slots=True, kw_only=True)
class Cryptarithm(Puzzle):
    """A sum with letters for digits; `digits` maps each letter to its digit."""

    SIZE: ClassVar[str] = "letters in the two terms"
    first: int
    second: int
    digits: dict[str, int]

    @override
    @classmethod
    def draw(cls, rng: random.Random, difficulty: int) -> Self:
        least = 10**difficulty
        first, second = (rng.randrange(least, 10 * least) for _ in range(2))
        used = sorted(set(f"{first}{second}{first + second}"))
        letters = rng.sample(string.ascii_uppercase, len(used))
        digits = {letter: int(d) for letter, d in zip(letters, used, strict=True)}
        return cls(first=first, second=second, digits=dict(sorted(digits.items())))

    @property
    @override
    def size(self) -> int:
        return len(f"{self.first}{self.second}")

    def _word(self, number: int) -> str:
        letter_of = {str(digit): letter for letter, digit in self.digits.items()}
        return "".join(letter_of[digit] for digit in str(number))

    @override
    def prompt(self) -> str:
        words = [self._word(n) for n in (self.first, self.second, self.first + self.second)]
        return (
            "Each letter stands for a different digit and no number begins with 0. Find the "
            f"digits.\n{words[0]} + {words[1]} = {words[2]}\nAnswer like A:1 B:2, all letters."
        )

    @override
    def steps(self) -> list[str]:
        lines, carry = [], 0
        for place in range(len(str(self.first))):
            column = [number // 10**place % 10 for number in (self.first, self.second)]
            total = sum(column) + carry
            lines.append(
                f"{column[0]} + {column[1]} + {carry} gives {total % 10}, carry {total // 10}"
            )
            carry = total // 10
        return lines

    @override
    def answer(self) -> str:
        return " ".join(f"{letter}:{digit}" for letter, digit in self.digits.items())

    @override
    def accepts(self, text: str) -> bool:
        found = labels(text, list(self.digits))
        if found is None or not all(re.fullmatch("[0-9]", digit) for digit in found.values()):
            return False
        words = [self._word(n) for n in (self.first, self.second, self.first + self.second)]
        spelled = ["".join(found[letter] for letter in word) for word in words]
        is_valid = len(set(found.values())) == len(found) and all(w[0] != "0" for w in spelled)
        return is_valid and int(spelled[0]) + int(spelled[1]) == int(spelled[2])
