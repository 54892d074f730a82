"""Instruction following: write about a topic under several rules that code can check.

Rules are drawn from a text that follows them all, so that they never contradict each other. Code
checks the rules and nothing else; whether the text is about its topic is for a model to judge
(M1 section 4.2.2 adds both rewards).
"""

import json
import random
from dataclasses import dataclass
from typing import ClassVar, Self

from typing_extensions import override

from m1.data_recipes.tasks.instruction_rules import RULE_NAMED, RULES
from m1.data_recipes.tasks.puzzle import Puzzle, PuzzleFamily
from m1.data_recipes.tasks.task import Outcome, Task

MAXIMUM_TEXT_CHARACTERS = 20_000  # ours

_TOPIC_TEXT = (
    "rain bread trains maps bridges gardens clocks rivers music glass paper salt wool wind "
    "lamps boats stones bees coffee snow apples walls doors mountains"
)
_WORD_TEXT = (
    "light water stone quiet early small green narrow travels keeps opens carries under across "
    "before after slowly every morning evening people make use old new long road house field "
    "cold warm heavy deep bright soft sharp round simple hidden open"
)
_TOPICS = tuple(_TOPIC_TEXT.split())
_WORDS = tuple(_WORD_TEXT.split())


def _sentence(rng: random.Random) -> str:
    words = rng.choices(_WORDS, k=rng.randint(4, 9))
    if rng.random() < 0.2:
        words[rng.randrange(len(words))] = f"*{rng.choice(_WORDS)}*"
    if rng.random() < 0.15:
        words[rng.randrange(len(words))] = f"[{rng.choice(_WORDS)}]"
    if rng.random() < 0.2:
        place = rng.randrange(len(words))
        words[place] = words[place].upper()
    text = " ".join(words)
    if rng.random() < 0.3:
        text = text.replace(" ", ", ", 1)
    return text[0].upper() + text[1:] + rng.choice("...!?")


def _paragraph(rng: random.Random) -> str:
    return " ".join(_sentence(rng) for _ in range(rng.randint(1, 3)))


def _prose(rng: random.Random) -> str:
    blocks = [_paragraph(rng) for _ in range(rng.randint(1, 4))]
    return rng.choice(["\n\n", "\n\n***\n\n"]).join(blocks)


def _bulleted(rng: random.Random) -> str:
    return "\n".join(f"- {_sentence(rng)}" for _ in range(rng.randint(2, 6)))


def _numbered(rng: random.Random) -> str:
    return "\n".join(f"{number}. {_sentence(rng)}" for number in range(1, rng.randint(3, 7)))


def _sectioned(rng: random.Random) -> str:
    return "\n\n".join(f"SECTION {n}\n{_paragraph(rng)}" for n in range(1, rng.randint(3, 5)))


def _as_json(rng: random.Random) -> str:
    keys = rng.sample(_WORDS, rng.randint(2, 4))
    return json.dumps({key: _sentence(rng) for key in keys}, indent=1)


def _following_text(rng: random.Random) -> str:
    """A text in one of many forms; what it says does not matter."""
    form = rng.choice((_prose, _prose, _bulleted, _numbered, _sectioned, _as_json))
    text = form(rng)
    if form is _as_json:
        return text
    if rng.random() < 0.3:
        text = f"<<{rng.choice(_WORDS)} {rng.choice(_WORDS)}>>\n\n{text}"
    if rng.random() < 0.2:
        text += f"\n\nP.S. {_sentence(rng)}"
    if rng.random() < 0.3:
        text = rng.choice((str.upper, str.lower))(text)
    return f'"{text}"' if rng.random() < 0.15 else text


@dataclass(frozen=True, slots=True, kw_only=True)
class Instructions(Puzzle):
    """A topic, rules as (name, parameter), and a text that follows them."""

    SIZE: ClassVar[str] = "rules"
    topic: str
    rules: tuple[tuple[str, str], ...]
    example: str

    @override
    @classmethod
    def draw(cls, rng: random.Random, difficulty: int) -> Self:
        example = _following_text(rng)
        chosen: dict[str, tuple[str, str]] = {}
        for rule in rng.sample(RULES, len(RULES)):
            parameter = rule.read(example, rng) if rule.group not in chosen else None
            if parameter is not None:
                chosen[rule.group] = (rule.name, parameter)
            if len(chosen) == difficulty:
                break
        return cls(topic=rng.choice(_TOPICS), rules=tuple(chosen.values()), example=example)

    @property
    @override
    def size(self) -> int:
        return len(self.rules)

    def _told(self) -> list[str]:
        return [RULE_NAMED[name].words.format(parameter) for name, parameter in self.rules]

    @override
    def prompt(self) -> str:
        rules = "\n".join(f"- {rule}" for rule in self._told())
        return f"Write about {self.topic}. Follow all of these rules:\n{rules}"

    @override
    def steps(self) -> list[str]:
        return self._told()

    @override
    def answer(self) -> str:
        return self.example

    @override
    def accepts(self, text: str) -> bool:
        return all(RULE_NAMED[name].holds(text, parameter) for name, parameter in self.rules)

    def followed_share(self, text: str) -> float:
        """Share of the rules that a text follows, for reports and partial rewards."""
        kept = [RULE_NAMED[name].holds(text, parameter) for name, parameter in self.rules]
        return sum(kept) / len(kept)


@dataclass(frozen=True, slots=True, kw_only=True)
class InstructionFamily(PuzzleFamily):
    """Texts of any alphabet, longer than other answers may be."""

    @override
    def judge(self, task: Task, answer: str) -> Outcome:
        text = answer.strip()
        is_usable = 0 < len(text) <= MAXIMUM_TEXT_CHARACTERS
        return "pass" if is_usable and self.puzzle_of(task).accepts(text) else "fail"


INSTRUCTION_FAMILIES = (
    InstructionFamily(name="instructions", kind=Instructions, domain="instructions"),
)
