"""Scores a document in one pass over its words, then decides by its kind's thresholds.

Scores are stored whether or not they decide anything, so that thresholds can be argued about
afterwards. The rule for code and QA is high recall (M1 section 2.1): the recipe exempts them.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence

from m1.data_recipes.document import Document, Kind
from m1.data_recipes.recipe import Filter

_WORD_OR_LINE = re.compile(r"[^\W\d_]+|\S+?(?=[^\W\d_]|\s|$)")


def scores(text: str) -> dict[str, float]:
    """Characters, words, alphabetic share of visible characters, repeated lines, word length."""
    visible = alphabetic = words = 0
    for match in _WORD_OR_LINE.finditer(text):
        token = match.group()
        visible += len(token)
        if token[0].isalpha():
            alphabetic += len(token)
            words += 1
    lines = [line.strip() for line in text.splitlines() if len(line.strip()) > 3]
    return {
        "characters": float(len(text)),
        "words": float(words),
        "alpha_share": alphabetic / visible if visible else 0.0,
        "repeated_line_share": 1.0 - len(set(lines)) / len(lines) if lines else 0.0,
        "mean_word_characters": alphabetic / words if words else 0.0,
    }


def _broken_rule(attributes: Mapping[str, float], limits: Filter) -> str:
    broken = {
        "too_short": attributes["characters"] < limits.minimum_characters,
        "few_letters": attributes["alpha_share"] < limits.minimum_alpha_share,
        "repeated_lines": attributes["repeated_line_share"] > limits.maximum_repeated_line_share,
        "long_words": attributes["mean_word_characters"] > limits.maximum_mean_word_characters,
    }
    return next((rule for rule, is_broken in broken.items() if is_broken), "")


def score_and_filter(
    documents: Sequence[Document], filters: Mapping[Kind, Filter]
) -> list[Document]:
    """Every kept document with its scores, and dropped where it breaks a rule of its kind."""
    return [_decided(document, filters.get(document.kind, Filter())) for document in documents]


def _decided(document: Document, limits: Filter) -> Document:
    if document.status != "keep":
        return document
    scored = dataclasses.replace(document, attributes=scores(document.text))
    rule = "empty" if not document.text.strip() else _broken_rule(scored.attributes, limits)
    return scored.dropped(stage="filter", reason=rule) if rule else scored
