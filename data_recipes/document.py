"""One document on its way through curation. Decisions are tags; nothing is silently removed.

Not here: reading (readers.py) and deciding (filters.py, dedup.py, decontaminate.py).
"""

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["code", "stem", "qa", "book", "web"]
Status = Literal["keep", "drop", "quarantine"]
Split = Literal["train", "heldout"]

KINDS: tuple[Kind, ...] = ("code", "stem", "qa", "book", "web")


@dataclass(frozen=True, slots=True, kw_only=True)
class QuestionAnswer:
    """Character spans into the document's text: the pair is natural, not generated."""

    question_start: int
    question_end: int
    answer_start: int
    answer_end: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """Text with its origin and everything that was decided about it.

    Args:
        id: digest of source, uri and raw text; orders every file that curation writes.
        uri: place within the source, never a path of this machine.
        attributes: scores by name; rules read these, not the text.
        drop_stage: which step decided against it.
    """

    id: str
    source: str
    uri: str
    licence: str
    kind: Kind
    text: str
    pairs: tuple[QuestionAnswer, ...] = ()
    attributes: Mapping[str, float] = field(default_factory=dict)
    content_hash: str = ""
    kept_id: str = ""
    status: Status = "keep"
    drop_stage: str = ""
    drop_reason: str = ""
    error: str = ""
    split: Split = "train"
    token_count: int = 0

    def dropped(self, *, stage: str, reason: str, kept_id: str = "") -> "Document":
        """The same document, decided against."""
        return dataclasses.replace(
            self, status="drop", drop_stage=stage, drop_reason=reason, kept_id=kept_id
        )


def digest_of(*parts: str) -> str:
    """blake2b-128 of the parts, unambiguous about where each ends."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        body = part.encode("utf-8", errors="surrogatepass")
        digest.update(len(body).to_bytes(8) + body)
    return digest.hexdigest()


def fraction_of(*parts: str) -> float:
    """A number in [0, 1) that depends on nothing but the parts."""
    return int(digest_of(*parts)[:13], 16) / 16**13
