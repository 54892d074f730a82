"""Readers: the bytes of one file to zero or more texts. Sources are parsed, never imported.

Each reader takes the file's text and returns `Extract`s; what it cannot read raises ValueError
(or SyntaxError), and the caller puts the file into quarantine.
"""

import ast
import doctest
import email.parser
import email.policy
import functools
import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from m1.data_recipes.document import QuestionAnswer

MINIMUM_DOCSTRING_CHARACTERS = 120  # ours: shorter ones are labels, not explanations
_TAG = re.compile(r"</?[a-zA-Z][a-zA-Z0-9]*(\s[^<>]*)?/?>|<!--")
_FENCE = re.compile(r"^\s*(```|~~~)")
_DOCUMENTED = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, slots=True, kw_only=True)
class Extract:
    """One text found in a file; `place` tells it from others of the same file."""

    place: str
    text: str
    pairs: tuple[QuestionAnswer, ...] = ()


def read_text(text: str) -> list[Extract]:
    """The file as it is."""
    return [Extract(place="", text=text)]


def strip_html(html: str) -> str:
    """Readable text of a page: main content first, all text if there is none."""
    from resiliparse.extract.html2text import extract_plain_text

    main = extract_plain_text(html, main_content=True, alt_texts=False)
    return main if main.strip() else str(extract_plain_text(html, alt_texts=False))


def read_html(text: str) -> list[Extract]:
    """A page's text without markup.

    Raises:
        ValueError: there is no text in it.
    """
    plain = strip_html(text)
    if not plain.strip():
        raise ValueError("no text in the page")
    return [Extract(place="", text=plain)]


def strip_inline_html(markup: str) -> str:
    """Markdown or reStructuredText without its HTML paragraphs' tags; code fences untouched."""
    from resiliparse.extract.html2text import extract_plain_text

    paragraphs: list[str] = []
    in_fence = False
    for paragraph in re.split(r"\n[ \t]*\n", markup):
        fences = sum(bool(_FENCE.match(line)) for line in paragraph.splitlines())
        is_code = in_fence or fences > 0 or paragraph.startswith(("    ", "\t"))
        in_fence ^= bool(fences % 2)
        if not is_code and _TAG.search(paragraph):
            paragraphs.append(extract_plain_text(paragraph, alt_texts=False).strip())
        else:
            paragraphs.append(paragraph)
    return "\n\n".join(part for part in paragraphs if part.strip())


@functools.lru_cache(maxsize=1024)
def _docstrings(source: str) -> tuple[tuple[str, str], ...]:
    """(name, docstring) of everything documented in a Python source, in order."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # odd escapes in other people's sources
        tree = ast.parse(source)
    found: list[tuple[str, str]] = []
    for number, node in enumerate(_documented(tree)):
        docstring = ast.get_docstring(node)
        if docstring:
            found.append((f"{getattr(node, 'name', 'module')}-{number}", docstring))
    return tuple(found)


def _documented(tree: ast.Module) -> Iterator[_DOCUMENTED]:
    """The module, its classes and functions, and theirs; not what is inside functions."""
    waiting: list[_DOCUMENTED] = [tree]
    while waiting:
        node = waiting.pop(0)
        yield node
        if isinstance(node, ast.Module | ast.ClassDef):
            waiting.extend(child for child in node.body if isinstance(child, _DOCUMENTED))


def _without_examples(docstring: str) -> str:
    """Prose of a docstring; its doctests belong to the QA documents."""
    try:
        parts = doctest.DocTestParser().parse(docstring)
    except ValueError:  # prompts indented in a way doctest refuses
        return docstring
    return "".join(part for part in parts if isinstance(part, str)).strip()


def read_docstrings(text: str) -> list[Extract]:
    """Explanations: every longer docstring without its examples."""
    prose = ((place, _without_examples(docstring)) for place, docstring in _docstrings(text))
    return [
        Extract(place=place, text=body)
        for place, body in prose
        if len(body) >= MINIMUM_DOCSTRING_CHARACTERS
    ]


def read_doctests(text: str) -> list[Extract]:
    """Natural questions with answers: `>>> expression` and what it printed."""
    if ">>>" not in text:
        return []
    extracts: list[Extract] = []
    for place, docstring in _docstrings(text):
        try:
            examples = doctest.DocTestParser().get_examples(docstring)
        except ValueError:
            continue
        if any(example.want for example in examples):
            extracts.append(_question_answers(place, examples))
    return extracts


def _question_answers(place: str, examples: list[doctest.Example]) -> Extract:
    text = ""
    pairs: list[QuestionAnswer] = []
    for example in examples:
        lines = example.source.rstrip("\n").split("\n")
        start = len(text)
        text += ">>> " + "\n... ".join(lines) + "\n"
        end = len(text)
        text += example.want
        if example.want:
            pairs.append(
                QuestionAnswer(
                    question_start=start, question_end=end, answer_start=end, answer_end=len(text)
                )
            )
    return Extract(place=place, text=text, pairs=tuple(pairs))


def read_topics(text: str) -> list[Extract]:
    """Chapters of the language reference, from the literal table that `help()` shows.

    Raises:
        ValueError: the file holds no such table.
    """
    for node in ast.parse(text).body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            table = ast.literal_eval(node.value)  # literals only; nothing is executed
            return [
                Extract(place=str(name), text=str(body)) for name, body in sorted(table.items())
            ]
    raise ValueError("no table of topics")


def read_metadata(text: str) -> list[Extract]:
    """The description that a package shows on its project page."""
    message = email.parser.Parser(policy=email.policy.compat32).parsestr(text)
    body = message.get_payload()
    description = body if isinstance(body, str) and body.strip() else message.get("Description")
    return [Extract(place="", text=strip_inline_html(str(description)))] if description else []


def licence_of(metadata: str) -> str:
    """Licence that a package's METADATA states; `unknown` when it states none."""
    message = email.parser.Parser(policy=email.policy.compat32).parsestr(metadata, headersonly=True)
    stated = message.get("License-Expression") or message.get("License") or ""
    if stated.strip() and len(stated) <= 100:
        return " ".join(stated.split())
    classifiers = [str(value) for value in message.get_all("Classifier") or []]
    names = [value.split(" :: ")[-1] for value in classifiers if value.startswith("License")]
    return names[0] if names else "unknown"


READERS: dict[str, Callable[[str], list[Extract]]] = {
    "text": read_text,
    "html": read_html,
    "docstrings": read_docstrings,
    "doctests": read_doctests,
    "topics": read_topics,
    "metadata": read_metadata,
}
"""Every reader a recipe may name."""
