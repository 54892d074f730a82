"""Reading what a model wrote: tokens, whole numbers, grids, labels. Text in, plain values out.

Nothing here evaluates anything. Each reader returns None for text of another shape; none raises,
and all are linear in the length of the text, which `is_readable` bounds first.
"""

import re
from collections.abc import Sequence

MAXIMUM_ANSWER_CHARACTERS = 4096  # ours: four times the longest reference answer
_READABLE = re.compile(r"[\t\n\r -~]*")
_INTEGER = re.compile(r"-?[0-9]{1,18}")
_SEPARATORS = str.maketrans(",;|", "   ")

Grid = tuple[tuple[int, ...], ...]


def is_readable(text: str) -> bool:
    """Whether the text is short and plain ASCII: other digits and spaces only look alike."""
    return len(text) <= MAXIMUM_ANSWER_CHARACTERS and bool(_READABLE.fullmatch(text))


def tokens(text: str) -> list[str]:
    """Words between white space, commas, semicolons and bars."""
    return text.translate(_SEPARATORS).split()


def integers(text: str) -> tuple[int, ...] | None:
    """Decimal numbers of at most 18 digits, and nothing else."""
    words = tokens(text)
    if not all(_INTEGER.fullmatch(word) for word in words):
        return None
    return tuple(int(word) for word in words)


def integer_grid(text: str, rows: int, columns: int) -> Grid | None:
    """`rows` x `columns` numbers in reading order; where lines break does not matter."""
    values = integers(text)
    if values is None or len(values) != rows * columns:
        return None
    return tuple(values[row * columns : (row + 1) * columns] for row in range(rows))


def cells(text: str) -> list[tuple[int, int]] | None:
    """Pairs `row column`, all different."""
    values = integers(text)
    if values is None or len(values) % 2:
        return None
    pairs = list(zip(values[::2], values[1::2], strict=True))
    return pairs if len(set(pairs)) == len(pairs) else None


def picture(text: str, rows: int, columns: int, marks: str) -> list[str] | None:
    """`rows` lines of `columns` characters out of `marks`; spaces inside a line are ignored."""
    lines = [line.replace(" ", "").strip() for line in text.splitlines() if line.strip()]
    fits = len(lines) == rows and all(len(line) == columns for line in lines)
    return lines if fits and set("".join(lines)) <= set(marks) else None


def labels(text: str, names: Sequence[str]) -> dict[str, str] | None:
    """`name:value` for each of `names` exactly once, in any order."""
    words = tokens(text.replace(":", " : "))
    is_whole = len(words) == 3 * len(names) and set(words[1::3]) == {":"}
    found = dict(zip(words[::3], words[2::3], strict=True)) if is_whole else {}
    return found if set(found) == set(names) else None


def rows_of(grid: Sequence[Sequence[object]], *, blank: object = None) -> str:
    """A grid as lines of words; `blank` cells become a dot."""
    return "\n".join(" ".join("." if cell == blank else str(cell) for cell in row) for row in grid)
