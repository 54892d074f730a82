"""Claims about instruction following: rules that never contradict, exact checks, bounded time."""

import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m1.data_recipes.chat import Response
from m1.data_recipes.tasks.families import make_tasks, verify
from m1.data_recipes.tasks.instruction_rules import RULE_NAMED, RULES
from m1.data_recipes.tasks.instructions import MAXIMUM_TEXT_CHARACTERS, Instructions


def test_there_are_at_least_25_kinds_of_rules() -> None:
    assert len(RULE_NAMED) == len(RULES) >= 25


@settings(max_examples=200, deadline=None)
@given(difficulty=st.integers(1, 10), seed=st.integers(0, 2**32))
def test_the_example_follows_every_rule_of_the_prompt(difficulty: int, seed: int) -> None:
    puzzle = Instructions.draw(random.Random(seed), difficulty)

    assert puzzle.size == difficulty
    assert puzzle.accepts(puzzle.answer())
    assert puzzle.followed_share(puzzle.answer()) == 1.0
    assert puzzle.prompt().count("\n- ") == difficulty


def test_every_rule_is_drawn_sooner_or_later() -> None:
    puzzles = [Instructions.draw(random.Random(seed), 10) for seed in range(600)]

    assert {name for puzzle in puzzles for name, _ in puzzle.rules} == set(RULE_NAMED)


# name, parameter, a text that follows the rule, and one that does not
CASES = [
    ("words_exactly", "3", "one two, three!", "one two"),
    ("words_at_least", "2", "a b", "a"),
    ("words_at_most", "2", "a b", "a b c"),
    ("characters_at_least", "3", "abc", "ab"),
    ("characters_at_most", "3", "abc", "abcd"),
    ("sentences_exactly", "2", "One. Two?!", "One."),
    ("sentences_exactly", "2", "\u4e00\u3002 \u4e8c\uff1f", "\u4e00\u3002"),
    ("sentences_at_most", "1", "One 1.5 two.", "One. Two."),
    ("paragraphs_exactly", "2", "a\n\nb", "a\nb"),
    ("lines_exactly", "2", "a\n\nb", "a"),
    ("longest_word", "3", "abc ab", "abcd"),
    ("includes_word", "rain", "The RAIN, again", "The rainbow"),
    ("word_exactly", "a 2", "a b A", "a a a"),
    ("word_at_least", "a 2", "a a a", "a"),
    ("letter_at_least", "e 2", "Ee", "e"),
    ("letter_at_most", "e 1", "e", "ee"),
    ("excludes_word", "very", "everything", "Very good"),
    ("bullets", "2", "- a\n* b", "- a\nb"),
    ("numbered_list", "2", "1. a\n2. b", "1. a\n3. b"),
    ("sections", "2", "SECTION 1\na\nSECTION 2\nb", "SECTION 2\na\nSECTION 1\nb"),
    ("json_keys", "a, b", '{"b": 1, "a": [2]}', '{"a": 1}'),
    ("json_keys", "a", '{"a": 1}', 'Sure: {"a": 1}'),
    ("highlights", "1", "an *open* door", "an open door"),
    ("placeholders", "1", "dear [name]", "dear name"),
    ("title", "1", "<<rain>>\ntext", "<rain>"),
    ("separators", "1", "a\n***\nb", "a\n****\nb"),
    ("quoted", "", '"a"', '"a" b'),
    ("postscript", "", "a\nP.S. b", "P.S. b\na"),
    ("lowercase", "", "all small 1", "All small"),
    ("uppercase", "", "ALL 1", "All"),
    ("capital_words", "2", "AB CD e", "AB A e"),
    ("no_comma", "", "a b", "a, b"),
    ("no_digit", "", "a", "a \u0664"),
    ("lines_end_with_stop", "", "a.\nb.", "a.\nb"),
    ("starts_with", "rain", "Rain falls", "The rain"),
    ("ends_with", "falls", "rain falls!", "falls rain"),
]


@pytest.mark.parametrize(("name", "parameter", "right", "wrong"), CASES)
def test_a_rule_tells_right_from_wrong(name: str, parameter: str, right: str, wrong: str) -> None:
    assert RULE_NAMED[name].holds(right, parameter)
    assert not RULE_NAMED[name].holds(wrong, parameter)


def test_the_cases_cover_every_rule() -> None:
    assert {name for name, *_ in CASES} == set(RULE_NAMED)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("[" * MAXIMUM_TEXT_CHARACTERS, id="open-brackets"),
        pytest.param('{"a":' * 4000, id="nested-json"),
        pytest.param("*" * MAXIMUM_TEXT_CHARACTERS, id="stars"),
        pytest.param("<<" * (MAXIMUM_TEXT_CHARACTERS // 2), id="titles"),
        pytest.param("\n " * (MAXIMUM_TEXT_CHARACTERS // 2), id="lines"),
        pytest.param("." * MAXIMUM_TEXT_CHARACTERS, id="stops"),
        pytest.param("." * (MAXIMUM_TEXT_CHARACTERS - 1) + "a", id="stops-before-a-letter"),
        pytest.param(("." * 40 + "a ") * 470, id="stops-in-words"),
        pytest.param("\n" + " " * (MAXIMUM_TEXT_CHARACTERS - 3) + "a", id="indented"),
        pytest.param("<<a" * 6000, id="titles-never-closed"),
        pytest.param("*a" * 9000, id="half-highlights"),
        pytest.param("- " * (MAXIMUM_TEXT_CHARACTERS // 2), id="bullets"),
        pytest.param("9" * MAXIMUM_TEXT_CHARACTERS, id="long-number"),
        pytest.param("a" * 10_000_000, id="ten-megabytes"),
        pytest.param("\ud800", id="surrogate"),
        pytest.param("", id="empty"),
    ],
)
def test_hostile_texts_are_checked_fast(text: str) -> None:
    tasks = make_tasks("instructions", count=40, difficulty=10, seed=1, split="sft")
    started = time.process_time()

    for task in tasks:
        response = Response(thought="", answer=text, well_formed=True)
        assert verify(task, response).outcome == "fail"

    assert time.process_time() - started < 2.0
