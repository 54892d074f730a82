"""Notices when generated text completes one of the strings that end a completion.

The model writes tokens, the strings are text, and a string may end in the middle of a token.
"""

from collections.abc import Callable, Sequence

TextOf = Callable[[Sequence[int]], str]

# ours: a token is at least one byte of text, but special tokens may be none; these are spare
SPARE_TOKENS = 8


class StopStrings:
    """Watches the text of one completion as it grows by a token at a time.

    Args:
        strings: what ends the completion.
        text_of: text of token ids; bytes that are no character yet may show as anything.
    """

    def __init__(self, strings: Sequence[str], text_of: TextOf) -> None:
        self.strings = tuple(strings)
        self.text_of = text_of
        self.tail_tokens = max(len(text.encode()) for text in strings) + SPARE_TOKENS

    def completed(self, token_ids: Sequence[int]) -> str | None:
        """The string that the newest token completes, the one that begins first if several."""
        found = first_of(self.strings, self.text_of(token_ids[-self.tail_tokens :]))
        return None if found is None else found[0]


def first_of(strings: Sequence[str], text: str) -> tuple[str, int] | None:
    """The string of `strings` that begins first in `text`, and where; the longer if two do."""
    places = [(text.find(string), -len(string), string) for string in strings if string in text]
    if not places:
        return None
    place, _, string = min(places)
    return string, place
