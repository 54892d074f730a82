"""Rules that a text can be told to follow, each checked by code and in any language.

A rule reads a parameter out of a text that follows it (so that rules drawn from one text never
contradict each other), says itself in words, and checks another text. All checks are linear in
the length of the text. The kinds of rules are those of instruction-following benchmarks; wording,
parameters and code are ours.
"""

import json
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Reader = Callable[[str, random.Random], str | None]
Check = Callable[[str, str], bool]

_SENTENCE_END = re.compile("[.!?\u3002\uff01\uff1f](?=\\s|$)")  # with the full-width ones
_HIGHLIGHT = re.compile(r"\*[^*\n]+\*")
_PLACEHOLDER = re.compile(r"\[[^\[\]\n]+\]")
_TITLE = re.compile(r"<<[^<>\n]+>>")
_NUMBERED = re.compile(r"([0-9]{1,4})\. \S")
_SECTION = re.compile(r"SECTION ([0-9]{1,4})")
_SEPARATOR = "***"
_MARGIN_SHARE = 0.2  # ours: bounds on lengths leave a fifth of room


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One kind of rule.

    Args:
        group: at most one rule of a group goes into a prompt.
        read: a parameter that the text satisfies; None where the rule does not suit the text.
        words: the rule with `{}` for its parameter.
        holds: whether a text satisfies the rule with a parameter.
    """

    name: str
    group: str
    read: Reader
    words: str
    holds: Check


def words_of(text: str) -> list[str]:
    """Runs between white space, without punctuation around them, in one case."""
    stripped = (_bare(word) for word in text.split())
    return [word.casefold() for word in stripped if word]


def _bare(word: str) -> str:
    """The word from its first to its last letter or digit."""
    marks = [place for place, character in enumerate(word) if character.isalnum()]
    return word[marks[0] : marks[-1] + 1] if marks else ""


def lines_of(text: str) -> list[str]:
    """Lines with something on them."""
    return [line.strip() for line in text.splitlines() if line.strip()]


def paragraphs_of(text: str) -> list[str]:
    """Blocks between empty lines."""
    return [block for block in re.split(r"\n[ \t]*\n", text.strip()) if block.strip()]


def sentences_in(text: str) -> int:
    """Sentence ends: a full stop, question or exclamation mark before a space or the end."""
    return len(_SENTENCE_END.findall(text))


def json_object(text: str) -> dict[str, Any] | None:
    """The text as one JSON object; None where it is not, or nested beyond reason."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _bullets(text: str) -> int:
    return sum(line.startswith(("- ", "* ", "• ")) for line in lines_of(text))


def _numbers_in_order(pattern: re.Pattern[str], text: str) -> int:
    """How many lines match, if their numbers run 1, 2, 3; else 0."""
    numbers = [int(found[1]) for line in lines_of(text) if (found := pattern.match(line))]
    return len(numbers) if numbers == list(range(1, len(numbers) + 1)) else 0


def _capital_words(text: str) -> int:
    return sum(len(word) > 1 and word.isupper() for word in map(_bare, text.split()))


def _letters(text: str, letter: str) -> int:
    return text.casefold().count(letter)


def _counted(count: Callable[[str], int]) -> tuple[Reader, Check]:
    """Reader and check of `exactly {} of something`, where there is at least one."""

    def read(text: str, _: random.Random) -> str | None:
        return str(count(text)) if count(text) else None

    return read, lambda text, number: count(text) == int(number)


def _at_least(count: Callable[[str], int]) -> tuple[Reader, Check]:
    def read(text: str, _: random.Random) -> str | None:
        return str(int(count(text) * (1 - _MARGIN_SHARE))) if count(text) > 1 else None

    return read, lambda text, number: count(text) >= int(number)


def _at_most(count: Callable[[str], int]) -> tuple[Reader, Check]:
    def read(text: str, _: random.Random) -> str | None:
        return str(int(count(text) * (1 + _MARGIN_SHARE)) + 1)

    return read, lambda text, number: count(text) <= int(number)


def _plain(holds: Callable[[str], bool]) -> tuple[Reader, Check]:
    """Reader and check of a rule without a parameter."""
    return lambda text, _: "" if holds(text) else None, lambda text, _: holds(text)


def _some_word(text: str, rng: random.Random) -> str | None:
    usable = sorted({word for word in words_of(text) if word.isalpha()})
    return rng.choice(usable) if usable else None


def _word_and_count(text: str, rng: random.Random) -> str | None:
    word = _some_word(text, rng)
    return f"{word} {words_of(text).count(word)}" if word else None


def _letter_and_count(text: str, rng: random.Random) -> str | None:
    letters = sorted({letter for letter in text.casefold() if letter.isalpha()})
    if not letters:
        return None
    letter = rng.choice(letters)
    return f"{letter} {_letters(text, letter)}"


def _split(parameter: str) -> tuple[str, int]:
    name, _, number = parameter.partition(" ")
    return name, int(number)


FORBIDDEN_WORDS = ("very", "really", "thing", "maybe", "good", "always", "never", "just")


def _absent_word(text: str, rng: random.Random) -> str | None:
    usable = [word for word in FORBIDDEN_WORDS if word not in words_of(text)]
    return rng.choice(usable) if usable else None


def _first_word(text: str, _: random.Random) -> str | None:
    return next(iter(words_of(text)), None)


def _last_word(text: str, _: random.Random) -> str | None:
    return next(iter(words_of(text)[::-1]), None)


def _json_keys(text: str, _: random.Random) -> str | None:
    found = json_object(text)
    return ", ".join(sorted(found)) if found else None


def _has_json_keys(text: str, keys: str) -> bool:
    return ", ".join(sorted(json_object(text) or {})) == keys


def _is_quoted(text: str) -> bool:
    bare = text.strip()
    return len(bare) > 1 and bare[0] == bare[-1] == '"'


def _lines_end_alike(text: str) -> bool:
    lines = lines_of(text)
    return len(lines) > 1 and all(line.endswith(".") for line in lines)


def _has_postscript(text: str) -> bool:
    lines = lines_of(text)
    return bool(lines) and lines[-1].startswith("P.S.")


def _rule(name: str, group: str, pair: tuple[Reader, Check], words: str) -> Rule:
    return Rule(name=name, group=group, read=pair[0], holds=pair[1], words=words)


def _count_of(pattern: re.Pattern[str]) -> Callable[[str], int]:
    return lambda text: len(pattern.findall(text))


def _word_count(text: str) -> int:
    return len(words_of(text))


def _longest_word(text: str) -> int:
    return max(map(len, words_of(text)), default=0)


RULES: tuple[Rule, ...] = (
    _rule("words_exactly", "words", _counted(_word_count), "Use exactly {} words."),
    _rule("words_at_least", "words", _at_least(_word_count), "Use at least {} words."),
    _rule("words_at_most", "words", _at_most(_word_count), "Use at most {} words."),
    _rule("characters_at_least", "length", _at_least(len), "Write at least {} characters."),
    _rule("characters_at_most", "length", _at_most(len), "Write at most {} characters."),
    _rule("sentences_exactly", "sentences", _counted(sentences_in), "Number of sentences: {}."),
    _rule("sentences_at_most", "sentences", _at_most(sentences_in), "At most {} sentences."),
    _rule(
        "paragraphs_exactly",
        "paragraphs",
        _counted(lambda text: len(paragraphs_of(text))),
        "Number of paragraphs, with an empty line between them: {}.",
    ),
    _rule(
        "lines_exactly",
        "lines",
        _counted(lambda text: len(lines_of(text))),
        "Number of lines that are not empty: {}.",
    ),
    _rule("longest_word", "word_size", _at_most(_longest_word), "No word over {} characters."),
    _rule(
        "includes_word",
        "include",
        (_some_word, lambda text, word: word in words_of(text)),
        "Use the word {}.",
    ),
    _rule(
        "word_exactly",
        "repeat",
        (_word_and_count, lambda text, p: words_of(text).count(_split(p)[0]) == _split(p)[1]),
        "Use this word exactly so often: {}.",
    ),
    _rule(
        "word_at_least",
        "repeat",
        (_word_and_count, lambda text, p: words_of(text).count(_split(p)[0]) >= _split(p)[1]),
        "Use this word at least so often: {}.",
    ),
    _rule(
        "letter_at_least",
        "letter",
        (_letter_and_count, lambda text, p: _letters(text, _split(p)[0]) >= _split(p)[1]),
        "Use this letter at least so often: {}.",
    ),
    _rule(
        "letter_at_most",
        "letter",
        (_letter_and_count, lambda text, p: _letters(text, _split(p)[0]) <= _split(p)[1]),
        "Use this letter at most so often: {}.",
    ),
    _rule(
        "excludes_word",
        "exclude",
        (_absent_word, lambda text, word: word not in words_of(text)),
        "Do not use the word {}.",
    ),
    _rule("bullets", "list", _counted(_bullets), "Number of bullet points, with - in front: {}."),
    _rule(
        "numbered_list",
        "list",
        _counted(lambda text: _numbers_in_order(_NUMBERED, text)),
        "Make a numbered list (1. 2. 3.). Number of its items: {}.",
    ),
    _rule(
        "sections",
        "list",
        _counted(lambda text: _numbers_in_order(_SECTION, text)),
        "Write sections, each under a line SECTION 1, SECTION 2 and so on. Their number: {}.",
    ),
    _rule(
        "json_keys",
        "json",
        (_json_keys, _has_json_keys),
        "Answer with one JSON object and nothing else; its keys are: {}.",
    ),
    _rule(
        "highlights",
        "highlight",
        _counted(_count_of(_HIGHLIGHT)),
        "Number of passages highlighted *like this*: {}.",
    ),
    _rule(
        "placeholders",
        "placeholder",
        _counted(_count_of(_PLACEHOLDER)),
        "Number of placeholders in square brackets, [like this]: {}.",
    ),
    _rule("title", "title", _counted(_count_of(_TITLE)), "Number of titles, <<like this>>: {}."),
    _rule(
        "separators",
        "separator",
        _counted(lambda text: lines_of(text).count(_SEPARATOR)),
        "Number of lines that are only ***: {}.",
    ),
    _rule("quoted", "quoted", _plain(_is_quoted), "Put the whole answer in double quotes."),
    _rule("postscript", "end", _plain(_has_postscript), "End with a line that begins P.S."),
    _rule("lowercase", "case", _plain(str.islower), "Use lower case only."),
    _rule("uppercase", "case", _plain(str.isupper), "Use capital letters only."),
    _rule("capital_words", "case", _at_least(_capital_words), "At least {} words in capitals."),
    _rule("no_comma", "comma", _plain(lambda text: "," not in text), "Use no comma."),
    _rule(
        "no_digit", "digit", _plain(lambda text: not any(map(str.isdigit, text))), "Use no digit."
    ),
    _rule(
        "lines_end_with_stop",
        "line_end",
        _plain(_lines_end_alike),
        "End every line with a full stop.",
    ),
    _rule(
        "starts_with",
        "start",
        (_first_word, lambda text, word: words_of(text)[:1] == [word]),
        "Let the first word be {}.",
    ),
    _rule(
        "ends_with",
        "end",
        (_last_word, lambda text, word: words_of(text)[-1:] == [word]),
        "Let the last word be {}.",
    ),
)

RULE_NAMED: dict[str, Rule] = {rule.name: rule for rule in RULES}
