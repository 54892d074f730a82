"""Token shards: Megatron's `.bin/.idx` pair, one document per sequence, written and read by mmap.

The bytes are those of megatron-core's IndexedDatasetBuilder (a test compares them), without its
import of torch. Every document ends with `<end_of_document>`. Nothing here unpickles.

Layout of `.idx`: magic, version u64, dtype code u8, sequences u64, document boundaries u64, then
lengths i32[sequences], byte offsets i64[sequences], boundaries i64[sequences + 1].
"""

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m1.infra.errors import BadInputError, CorruptObjectError

MAGIC = b"MMIDIDX\x00\x00"
VERSION = 1
_HEADER = struct.Struct("<9sQBQQ")
_DTYPES: dict[int, Any] = {4: np.dtype("<i4"), 8: np.dtype("<u2")}
_UINT16_LIMIT = 65_500  # as Megatron: larger vocabularies need int32

Tokens = NDArray[Any]


def _dtype_code(vocabulary_size: int) -> int:
    return 8 if vocabulary_size < _UINT16_LIMIT else 4


def write_shard(
    prefix: Path, documents: Iterable[Sequence[int]], *, vocabulary_size: int
) -> tuple[int, int]:
    """Write `prefix.bin` and `prefix.idx`; returns (documents, tokens).

    Raises:
        ValueError: a document is empty or holds an id outside the vocabulary.
    """
    code = _dtype_code(vocabulary_size)
    lengths: list[int] = []
    partial = prefix.parent / f"{prefix.name}.bin.partial"
    with partial.open("wb") as stream:
        for document in documents:
            tokens = np.asarray(document, dtype=np.int64)
            if not tokens.size or tokens.min() < 0 or tokens.max() >= vocabulary_size:
                raise ValueError(f"document {len(lengths)} is empty or outside the vocabulary")
            stream.write(tokens.astype(_DTYPES[code]).tobytes())
            lengths.append(int(tokens.size))
    partial.rename(prefix.parent / f"{prefix.name}.bin")
    (prefix.parent / f"{prefix.name}.idx").write_bytes(_index_bytes(lengths, code))
    return len(lengths), sum(lengths)


def _index_bytes(lengths: Sequence[int], code: int) -> bytes:
    sizes = np.asarray(lengths, dtype="<i4")
    ends = np.cumsum(sizes, dtype=np.int64) * _DTYPES[code].itemsize
    offsets = np.concatenate([np.zeros(1, dtype=np.int64), ends])[: len(sizes)]
    boundaries = np.arange(len(sizes) + 1, dtype="<i8")
    header = _HEADER.pack(MAGIC, VERSION, code, len(sizes), len(boundaries))
    return header + sizes.tobytes() + offsets.astype("<i8").tobytes() + boundaries.tobytes()


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """One opened pair: document i is `tokens[starts[i] : starts[i] + lengths[i]]`."""

    tokens: Tokens
    starts: NDArray[np.int64]
    lengths: NDArray[np.int64]

    def document(self, number: int) -> Tokens:
        """Token ids of one document, its end-of-document token included."""
        start = int(self.starts[number])
        return self.tokens[start : start + int(self.lengths[number])]


def read_shard(prefix: Path) -> Shard:
    """Open `prefix.bin` and `prefix.idx` and check every size and offset before use.

    Raises:
        BadInputError: a file is missing.
        CorruptObjectError: the index is not Megatron's, or points outside the tokens.
    """
    index, binary = (prefix.parent / f"{prefix.name}.{end}" for end in ("idx", "bin"))
    if not index.is_file() or not binary.is_file():
        raise BadInputError(f"missing token shard {prefix.name}.bin/.idx in {prefix.parent}")
    body = index.read_bytes()
    dtype, lengths, offsets = _parse_index(body, name=index.name)
    size_bytes = binary.stat().st_size
    inside = (offsets >= 0) & (lengths >= 0) & (offsets + lengths * dtype.itemsize <= size_bytes)
    if not bool(np.all(inside & (offsets % dtype.itemsize == 0))):
        raise CorruptObjectError(f"{index.name} points outside {binary.name}")
    usable = size_bytes // dtype.itemsize
    tokens: Tokens = (
        np.memmap(binary, dtype=dtype, mode="r", shape=(usable,))
        if usable
        else np.zeros(0, dtype=dtype)
    )
    return Shard(tokens=tokens, starts=offsets // dtype.itemsize, lengths=lengths)


def _parse_index(body: bytes, *, name: str) -> tuple[Any, NDArray[np.int64], NDArray[np.int64]]:
    if len(body) < _HEADER.size:
        raise CorruptObjectError(f"{name} is too short for an index")
    magic, version, code, sequences, boundaries = _HEADER.unpack_from(body)
    if magic != MAGIC or version != VERSION or code not in _DTYPES:
        raise CorruptObjectError(f"{name}: magic, version or token type is not accepted")
    if len(body) != _HEADER.size + 12 * sequences + 8 * boundaries:
        raise CorruptObjectError(f"{name} has another size than its header says")
    lengths = np.frombuffer(body, dtype="<i4", count=sequences, offset=_HEADER.size)
    start = _HEADER.size + 4 * sequences
    offsets = np.frombuffer(body, dtype="<i8", count=sequences, offset=start)
    return _DTYPES[code], lengths.astype(np.int64), offsets.astype(np.int64)


class TokenShards:
    """All kinds of one split below a directory: `{kind}.{split}.bin/.idx`."""

    def __init__(self, shards: dict[str, Shard]) -> None:
        self._shards = shards

    @classmethod
    def open(cls, directory: Path, split: str) -> "TokenShards":
        """Open every kind of `split`.

        Raises:
            BadInputError: the directory holds no shard of this split.
            CorruptObjectError: an index is damaged.
        """
        suffix = f".{split}.idx"
        names = sorted(path.name for path in directory.glob(f"*{suffix}"))
        if not names:
            raise BadInputError(f"no *{suffix} in {directory}")
        kinds = [name.removesuffix(suffix) for name in names]
        return cls({kind: read_shard(directory / f"{kind}.{split}") for kind in kinds})

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds present, sorted."""
        return tuple(self._shards)

    def documents(self, kind: str) -> int:
        """Number of documents of one kind."""
        return len(self._shards[kind].lengths)

    def tokens(self, kind: str) -> int:
        """Number of tokens of one kind."""
        return int(self._shards[kind].lengths.sum())

    def lengths(self, kind: str) -> NDArray[np.int64]:
        """Tokens of every document of one kind, int64 [documents]."""
        return self._shards[kind].lengths

    def document(self, kind: str, number: int) -> Tokens:
        """Token ids of one document; it ends with `<end_of_document>`."""
        return self._shards[kind].document(number)
