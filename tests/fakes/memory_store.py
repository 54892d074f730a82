"""A Store in memory that passes the contract suite, and a wrapper that loses things on order."""

import hashlib
import itertools
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from m1.infra.clock import SYSTEM_CLOCK, Clock
from m1.infra.errors import InvalidSettingError, NotFoundError, PreconditionFailedError
from m1.infra.names import validate_key
from m1.infra.store.protocol import ObjectSummary, StoredObject


class MemoryStore:
    """Objects in a dictionary; `before` is called with (action, key) ahead of every operation."""

    def __init__(
        self,
        *,
        clock: Clock = SYSTEM_CLOCK,
        before: Callable[[str, str], None] = lambda _action, _key: None,
    ) -> None:
        self.before = before
        self._clock = clock
        self._objects: dict[str, tuple[bytes, str, float]] = {}
        self._lock = threading.Lock()
        self._versions = itertools.count()

    @property
    def url(self) -> str:
        """Names the kind of store only."""
        return "memory://store"

    def get(self, key: str) -> StoredObject:
        """Read an object."""
        self.before("get", validate_key(key))
        with self._lock:
            body, etag, _ = self._found(key)
        return StoredObject(body=body, etag=etag)

    def get_range(self, key: str, *, start_bytes: int, length_bytes: int) -> bytes:
        """Read part of an object."""
        return self.get(key).body[start_bytes : start_bytes + length_bytes]

    def put(self, key: str, body: bytes) -> str:
        """Write, replacing."""
        self.before("put", validate_key(key))
        with self._lock:
            return self._write(key, body)

    def put_if_absent(self, key: str, body: bytes) -> str:
        """Create."""
        self.before("put", validate_key(key))
        with self._lock:
            if key in self._objects:
                raise PreconditionFailedError(f"{key} exists")
            return self._write(key, body)

    def put_if_match(self, key: str, body: bytes, *, etag: str) -> str:
        """Replace one version."""
        self.before("put", validate_key(key))
        with self._lock:
            if self._objects.get(key, (b"", "", 0.0))[1] != etag:
                raise PreconditionFailedError(f"{key} is no longer the version that was read")
            return self._write(key, body)

    def list(self, prefix: str) -> Iterator[ObjectSummary]:
        """All objects under `prefix`, sorted by key."""
        if ".." in prefix.split("/") or prefix.startswith("/"):
            raise InvalidSettingError(field="prefix", value=prefix, accepted="a relative prefix")
        self.before("list", prefix)
        with self._lock:
            found = sorted(item for item in self._objects.items() if item[0].startswith(prefix))
        for key, (body, etag, modified_at) in found:
            yield ObjectSummary(key=key, size_bytes=len(body), etag=etag, modified_at=modified_at)

    def delete(self, key: str) -> None:
        """Remove; no error if absent."""
        self.before("delete", validate_key(key))
        with self._lock:
            self._objects.pop(key, None)

    def upload_file(self, path: Path, key: str) -> None:
        """Read a file into an object."""
        self.put(key, path.read_bytes())

    def download_file(self, key: str, path: Path) -> None:
        """Write an object to `path.part`, then rename."""
        body = self.get(key).body
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(path.name + ".part")
        part.write_bytes(body)
        part.replace(path)

    def probe(self) -> None:
        """Write, read and delete a tiny object."""
        self.put("probe", b"probe")
        self.get("probe")
        self.delete("probe")

    def _found(self, key: str) -> tuple[bytes, str, float]:
        if key not in self._objects:
            raise NotFoundError(f"{self.url}: no object {key}")
        return self._objects[key]

    def _write(self, key: str, body: bytes) -> str:
        etag = f"{next(self._versions)}-{hashlib.sha256(body).hexdigest()}"
        self._objects[key] = (bytes(body), etag, self._clock.wall_seconds())
        return etag
