"""Keeps evaluation out of training: held-out task prompts, and the held-out documents.

A task prompt is recognised by its shape, whatever its seed and difficulty; the split that owns
it is a property of the prompt itself, so no list of prompts is needed.
"""

import dataclasses
import re
from collections.abc import Sequence

from m1.data_recipes.document import Document, fraction_of
from m1.data_recipes.recipe import Heldout
from m1.data_recipes.tasks.families import split_of
from m1.infra.errors import BadInputError

_PROMPT = re.compile(r"\d([><|;])\d=\?(?:\1\d=\?)*")
CHARACTERS_PER_TOKEN_AT_MOST = 4  # ours: long documents are chosen before a tokenizer exists


def has_heldout_prompt(text: str) -> bool:
    """Whether the text holds a task prompt that belongs to the held-out split."""
    return any(split_of(match.group()) == "heldout" for match in _PROMPT.finditer(text))


def drop_contaminated(documents: Sequence[Document]) -> list[Document]:
    """Documents; those with a held-out prompt inside are dropped."""
    return [
        document.dropped(stage="decontaminate", reason="heldout_prompt")
        if document.status == "keep" and has_heldout_prompt(document.text)
        else document
        for document in documents
    ]


def _long_ids(kept: Sequence[Document], settings: Heldout) -> set[str]:
    """Long documents to hold out: as many as wanted, never more than half of them."""
    least = settings.long_tokens * CHARACTERS_PER_TOKEN_AT_MOST
    long = [d.id for d in kept if d.kind == settings.long_kind and len(d.text) >= least]
    by_digest = sorted(long, key=lambda key: (fraction_of("long", key), key))
    return set(by_digest[: min(settings.long_documents, len(long) // 2)])


def _one_per_kind(kept: Sequence[Document], chosen: set[str]) -> set[str]:
    """One document of each kind that has several but none held out."""
    missing: set[str] = set()
    for kind in sorted({document.kind for document in kept}):
        ids = [document.id for document in kept if document.kind == kind]
        if len(ids) > 1 and not chosen.intersection(ids):
            missing.add(min(ids, key=lambda key: (fraction_of("heldout", key), key)))
    return missing


def split_heldout(documents: Sequence[Document], settings: Heldout) -> list[Document]:
    """Documents with their split; a digest of the text decides, so copies stay together.

    Raises:
        BadInputError: too few usable documents to train on some and measure on others.
    """
    kept = [document for document in documents if document.status == "keep"]
    chosen = {d.id for d in kept if fraction_of("split", d.content_hash) < settings.share}
    for kind in {document.kind for document in kept}:  # never hold out the whole of a kind
        ids = {document.id for document in kept if document.kind == kind}
        chosen -= ids if ids <= chosen else set()
    chosen |= _long_ids(kept, settings)
    chosen |= _one_per_kind(kept, chosen)
    if not chosen:
        raise BadInputError(
            f"{len(kept)} usable documents; accepted: at least 2 of one kind, "
            "one to train on and one to measure on"
        )
    return [
        dataclasses.replace(document, split="heldout") if document.id in chosen else document
        for document in documents
    ]
