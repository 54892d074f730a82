"""What a store must do. Holds no implementation: see local.py and s3.py."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectSummary:
    """One listed object; `modified_at` is in unix seconds."""

    key: str
    size_bytes: int
    etag: str
    modified_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredObject:
    """An object that was read whole."""

    body: bytes
    etag: str


class Store(Protocol):
    """Objects by key; every method may raise StoreAccessError or StoreUnavailableError."""

    @property
    def url(self) -> str:
        """Where the store is, without credentials."""
        ...

    def get(self, key: str) -> StoredObject:
        """Read an object; NotFoundError if absent."""
        ...

    def get_range(self, key: str, *, start_bytes: int, length_bytes: int) -> bytes:
        """Read at most `length_bytes` from `start_bytes`; shorter only at the end."""
        ...

    def put(self, key: str, body: bytes) -> str:
        """Write, replacing; returns the etag."""
        ...

    def put_if_absent(self, key: str, body: bytes) -> str:
        """Create; PreconditionFailedError if another body is there."""
        ...

    def put_if_match(self, key: str, body: bytes, *, etag: str) -> str:
        """Replace the version `etag`; PreconditionFailedError if it is no longer current."""
        ...

    def list(self, prefix: str) -> Iterator[ObjectSummary]:
        """All objects under `prefix`, sorted by key."""
        ...

    def delete(self, key: str) -> None:
        """Remove; no error if absent."""
        ...

    def upload_file(self, path: Path, key: str) -> None:
        """Stream a file into an object with bounded memory."""
        ...

    def download_file(self, key: str, path: Path) -> None:
        """Stream an object into `path`, which appears only when complete."""
        ...

    def probe(self) -> None:
        """Prove that writing, reading and deleting work."""
        ...
