"""Exact and near duplicates. The document with the smallest id represents its cluster.

Exact: digest of the text without case and whitespace. Near: Daft's MinHash, banded, candidates
checked by their estimated Jaccard similarity, joined by union-find.
"""

import dataclasses
import itertools
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m1.data_recipes.document import Document, digest_of
from m1.data_recipes.recipe import NearDuplicates

_WHITESPACE = re.compile(r"\s+")


def _folded(text: str) -> str:
    return _WHITESPACE.sub(" ", text.casefold()).strip()


def drop_exact_duplicates(documents: Sequence[Document]) -> list[Document]:
    """Documents (sorted by id) with their content hash; all but the first of a hash dropped."""
    first: dict[str, str] = {}
    result: list[Document] = []
    for document in documents:
        if document.status != "keep":
            result.append(document)
            continue
        content = digest_of(_folded(document.text))
        kept = first.setdefault(content, document.id)
        hashed = dataclasses.replace(document, content_hash=content, kept_id=kept)
        is_first = kept == document.id
        result.append(
            hashed
            if is_first
            else hashed.dropped(stage="dedup", reason="exact_duplicate", kept_id=kept)
        )
    return result


def _signatures(texts: Sequence[str], settings: NearDuplicates, seed: int) -> NDArray[np.uint32]:
    """MinHash of every text: uint32 [texts, bands * rows]."""
    import daft

    hashes = settings.bands * settings.rows
    frame = daft.from_pydict({"place": list(range(len(texts))), "text": list(texts)})
    column: Any = daft.col("text").minhash(
        num_hashes=hashes, ngram_size=settings.ngram_words, seed=seed % 2**31
    )
    table = frame.select(daft.col("place"), column.alias("minhash")).sort("place").to_arrow()
    flat = np.asarray(table.column("minhash").combine_chunks().values, dtype=np.uint32)
    return flat.reshape(len(texts), hashes)


def _candidates(signatures: NDArray[np.uint32], bands: int) -> Iterator[tuple[int, int]]:
    """Pairs (first of a bucket, other) that share a whole band."""
    for band in np.split(signatures, bands, axis=1):
        buckets: dict[bytes, list[int]] = defaultdict(list)
        for index, row in enumerate(np.ascontiguousarray(band)):
            buckets[row.tobytes()].append(index)
        for members in buckets.values():
            yield from itertools.pairwise(members)


def clusters(pairs: Iterable[tuple[int, int]], count: int) -> list[int]:
    """Smallest member of each index's cluster."""
    parent = list(range(count))

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    for left, right in pairs:
        low, high = sorted((root(left), root(right)))
        parent[high] = low
    return [root(index) for index in range(count)]


def drop_near_duplicates(
    documents: Sequence[Document], settings: NearDuplicates, *, seed: int
) -> list[Document]:
    """Documents (sorted by id); of each cluster only the first is kept."""
    places = [place for place, document in enumerate(documents) if document.status == "keep"]
    if len(places) < 2:
        return list(documents)
    signatures = _signatures([_folded(documents[place].text) for place in places], settings, seed)
    alike = (
        (left, right)
        for left, right in set(_candidates(signatures, settings.bands))
        if float(np.mean(signatures[left] == signatures[right])) >= settings.similarity
    )
    result = list(documents)
    for index, first in enumerate(clusters(alike, len(places))):
        if first != index:
            kept = documents[places[first]].id
            result[places[index]] = documents[places[index]].dropped(
                stage="dedup", reason="near_duplicate", kept_id=kept
            )
    return result
