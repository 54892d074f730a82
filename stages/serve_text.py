"""Text of a completion while it grows: whole characters only, and nothing of a stop string."""

from collections.abc import Sequence

from m1.data_recipes.tokenizer import Tokenizer
from m1.model.stop_strings import first_of

LONGEST_UNFINISHED_TOKENS = 3  # a character is at most four bytes, a byte token each
REPLACEMENT = "\ufffd"


class TextStream:
    """Turns tokens into text that never has to be taken back.

    Args:
        tokenizer: whose tokens they are.
        stop_strings: text from the first of these on is not shown.
        stop_token_ids: tokens that end a completion and are not shown.
    """

    def __init__(
        self, tokenizer: Tokenizer, stop_strings: Sequence[str], stop_token_ids: Sequence[int]
    ) -> None:
        self.tokenizer = tokenizer
        self.stop_strings = tuple(stop_strings)
        self.stop_token_ids = frozenset(stop_token_ids)
        self._tokens: list[int] = []  # may end within a character
        self._held = ""  # may be the beginning of a stop string

    def push(self, token_ids: Sequence[int]) -> str:
        """Text that these tokens make certain."""
        self._tokens += [token for token in token_ids if token not in self.stop_token_ids]
        whole = self._whole_tokens()
        text = self.tokenizer.decode(self._tokens[:whole])
        del self._tokens[:whole]
        return self._release(self._held + text)

    def finish(self) -> str:
        """What was still held back; called once, after the last token."""
        text = self._held + self.tokenizer.decode(self._tokens)
        found = first_of(self.stop_strings, text)
        return text if found is None else text[: found[1]]

    def _whole_tokens(self) -> int:
        """How many tokens do not end within a character, as far as one can know."""
        count = len(self._tokens)
        shortest = max(0, count - LONGEST_UNFINISHED_TOKENS)
        for whole in range(count, shortest, -1):
            if not self.tokenizer.decode(self._tokens[:whole]).endswith(REPLACEMENT):
                return whole
        return shortest  # what is broken for longer than any character will not be mended

    def _release(self, text: str) -> str:
        """All of `text` but what may turn out to be a stop string."""
        found = first_of(self.stop_strings, text)
        cut = len(text) if found is None else found[1]
        if found is None:
            starts = range(max(0, len(text) - self._longest()), len(text))
            begun = (at for at in starts if any(s.startswith(text[at:]) for s in self.stop_strings))
            cut = next(begun, len(text))
        self._held = text[cut:]
        return text[:cut]

    def _longest(self) -> int:
        return max((len(string) for string in self.stop_strings), default=0)
