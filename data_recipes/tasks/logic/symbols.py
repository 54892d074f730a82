"""Puzzles on strings of symbols: bracket completion, sorting, ciphers, truth values."""

import random
import string
from dataclasses import dataclass
from typing import ClassVar, Self

from typing_extensions import override

from m1.data_recipes.tasks.puzzle import Puzzle

_CLOSING = {"(": ")", "[": "]", "{": "}", "<": ">"}


@dataclass(frozen=True, slots=True, kw_only=True)
class DyckCompletion(Puzzle):
    """Close every open bracket, the last one first."""

    SIZE: ClassVar[str] = "brackets given"
    opening: str

    @override
    @classmethod
    def draw(cls, rng: random.Random, difficulty: int) -> Self:
        text, waiting = "", list[str]()
        while len(text) < 6 + 6 * difficulty or not waiting:
            if waiting and rng.random() < 0.4:
                text += waiting.pop()
            else:
                text += rng.choice(list(_CLOSING))
                waiting.append(_CLOSING[text[-1]])
        return cls(opening=text)

    @property
    @override
    def size(self) -> int:
        return len(self.opening)

    @override
    def prompt(self) -> str:
        return f"Close all open brackets, no more: {self.opening}\nAnswer with what is missing."

    def _waiting(self) -> list[str]:
        """After each bracket, the closing ones still needed, next one first."""
        states = [""]
        for bracket in self.opening:
            closing = _CLOSING.get(bracket)
            states.append(closing + states[-1] if closing else states[-1][1:])
        return states[1:]

    @override
    def steps(self) -> list[str]:
        return [f"{b} waits for {w}" for b, w in zip(self.opening, self._waiting(), strict=True)]

    @override
    def answer(self) -> str:
        return self._waiting()[-1]

    @override
    def accepts(self, text: str) -> bool:
        return "".join(text.split()) == self.answer()


@dataclass(frozen=True, slots=True, kw_only=True)
class WordSorting(Puzzle):
    """Sort words by an alphabet of its own."""

    SIZE: ClassVar[str] = "words"
    alphabet: str
    words: tuple[str, ...]

    @override
    @classmethod
    def draw(cls, rng: random.Random, difficulty: int) -> Self:
        alphabet = "".join(rng.sample(string.ascii_lowercase, 8))
        words: set[str] = set()
        while len(words) < 3 + 2 * difficulty:
            words.add("".join(rng.choices(alphabet, k=rng.randint(2, 5))))
        return cls(alphabet=alphabet, words=tuple(rng.sample(sorted(words), len(words))))

    @property
    @override
    def size(self) -> int:
        return len(self.words)

    def _key(self, word: str) -> list[int]:
        return [self.alphabet.index(letter) for letter in word]

    @override
    def prompt(self) -> str:
        return (
            f"In a language the alphabet has this order: {self.alphabet}\nSort these words as "
            "its dictionary would (a word comes before the longer ones that begin with it): "
            f"{' '.join(self.words)}\nAnswer with the words in order."
        )

    @override
    def steps(self) -> list[str]:
        return [f"{word}: {' '.join(map(str, self._key(word)))}" for word in self.words]

    @override
    def answer(self) -> str:
        return " ".join(sorted(self.words, key=self._key))


def _shift(text: str, amount: int) -> str:
    letters = string.ascii_uppercase
    return "".join(letters[(letters.index(letter) + amount) % 26] for letter in text)


def _apply(rule: str, text: str) -> str:
    """One step of a cipher."""
    name, _, amount = rule.partition(" ")
    half = len(text) // 2
    return {
        "shift": lambda: _shift(text, int(amount)),
        "reverse": lambda: text[::-1],
        "rotate": lambda: text[int(amount) :] + text[: int(amount)],
        "swap": lambda: text[half:] + text[:half],
        "weave": lambda: text[::2] + text[1::2],
        "mirror": lambda: "".join(chr(155 - ord(letter)) for letter in text),
    }[name]()


_RULE_WORDS = {
    "shift": "replace each letter by the one {} places later in the alphabet (after Z comes A)",
    "reverse": "reverse the text",
    "rotate": "move the first {} letters to the end",
    "swap": "exchange the first half and the second half",
    "weave": "write the letters at odd places (1st, 3rd, ...), then those at even places",
    "mirror": "replace A by Z, B by Y and so on",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Cipher(Puzzle):
    """Carry out the steps of a cipher on a text."""

    SIZE: ClassVar[str] = "steps"
    text: str
    rules: tuple[str, ...]

    @override
    @classmethod
    def draw(cls, rng: random.Random, difficulty: int) -> Self:
        text = "".join(rng.choices(string.ascii_uppercase, k=8))
        names = [rng.choice(list(_RULE_WORDS)) for _ in range(difficulty)]
        takes_amount = {"shift": 25, "rotate": 7}
        rules = [
            f"{name} {rng.randint(1, takes_amount[name])}" if name in takes_amount else name
            for name in names
        ]
        return cls(text=text, rules=tuple(rules))

    @property
    @override
    def size(self) -> int:
        return len(self.rules)

    def _texts(self) -> list[str]:
        texts = [self.text]
        for rule in self.rules:
            texts.append(_apply(rule, texts[-1]))
        return texts[1:]

    @override
    def prompt(self) -> str:
        rules = "\n".join(
            f"{number}. {_RULE_WORDS[rule.split()[0]].format(rule.partition(' ')[2])}"
            for number, rule in enumerate(self.rules, 1)
        )
        return (
            f"Encode {self.text} by these steps, one after the other:\n{rules}\n"
            "Answer with the encoded text."
        )

    @override
    def steps(self) -> list[str]:
        return [f"{number}. {text}" for number, text in enumerate(self._texts(), 1)]

    @override
    def answer(self) -> str:
        return self._texts()[-1]


@dataclass(frozen=True, slots=True, kw_only=True)
class BooleanExpressions(Puzzle):
    """Truth values of expressions; each is in prefix order: and, or, not, 1, 0."""

    SIZE: ClassVar[str] = "connectives"
    expressions: tuple[tuple[str, ...], ...]

    @override
    @classmethod
    def draw(cls, rng: random.Random, difficulty: int) -> Self:
        return cls(expressions=tuple(tuple(_expression(rng, 1 + difficulty)) for _ in range(6)))

    @property
    @override
    def size(self) -> int:
        return sum(word not in "10" for words in self.expressions for word in words)

    @override
    def prompt(self) -> str:
        lines = "\n".join(
            f"{number}. {_read(words)[0]}" for number, words in enumerate(self.expressions, 1)
        )
        return (
            f"Work out each expression:\n{lines}\nAnswer with the six values in order, 1 for "
            "true and 0 for false, separated by spaces."
        )

    @override
    def steps(self) -> list[str]:
        return [f"{_read(words)[0]} is {int(_read(words)[1])}" for words in self.expressions]

    @override
    def answer(self) -> str:
        return " ".join(str(int(_read(words)[1])) for words in self.expressions)


def _expression(rng: random.Random, connectives: int) -> list[str]:
    """Prefix words of a random expression with that many connectives."""
    if connectives == 0:
        return [rng.choice("10")]
    name = rng.choice(("and", "or", "not"))
    if name == "not":
        return [name, *_expression(rng, connectives - 1)]
    left = rng.randrange(connectives)
    return [name, *_expression(rng, left), *_expression(rng, connectives - 1 - left)]


def _read(words: tuple[str, ...]) -> tuple[str, bool]:
    """Infix text and value of a prefix expression: read backwards, every operand waits."""
    waiting: list[tuple[str, bool]] = []
    for word in reversed(words):
        if word in "10":
            waiting.append(("true" if word == "1" else "false", word == "1"))
        elif word == "not":
            text, value = waiting.pop()
            waiting.append((f"not {text}", not value))
        else:
            (left, a), (right, b) = waiting.pop(), waiting.pop()
            waiting.append((f"({left} {word} {right})", (a and b) if word == "and" else (a or b)))
    return waiting[0]
