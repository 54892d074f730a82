"""A directory as a store. One host or a POSIX file system with working locks; not a cache."""

import errno
import fcntl
import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from m1.infra.errors import (
    InvalidSettingError,
    NotFoundError,
    PreconditionFailedError,
    StoreAccessError,
    StoreUnavailableError,
)
from m1.infra.names import validate_key
from m1.infra.store.protocol import ObjectSummary, StoredObject

_REFUSED = {errno.EACCES, errno.EPERM, errno.EROFS}
_PRIVATE = ".m1-private"  # temporary files and the lock; never listed


class LocalStore:
    """Objects are files under `root`; every write is a new file renamed or linked into place."""

    def __init__(self, root: Path) -> None:
        self._root = Path(os.path.realpath(root))
        self._private = self._root / _PRIVATE

    @property
    def url(self) -> str:
        """`file://` and the root."""
        return f"file://{self._root}"

    def get(self, key: str) -> StoredObject:
        """Read an object; its etag is the sha256 of its bytes."""
        with self._translated("get", key):
            body = self._path(key).read_bytes()
        return StoredObject(body=body, etag=_digest(body))

    def get_range(self, key: str, *, start_bytes: int, length_bytes: int) -> bytes:
        """Read part of an object."""
        with self._translated("get", key), self._path(key).open("rb") as source:
            source.seek(start_bytes)
            return source.read(length_bytes)

    def put(self, key: str, body: bytes) -> str:
        """Write, replacing."""
        with self._locked("put", key):
            self._replace(key, body)
        return _digest(body)

    def put_if_absent(self, key: str, body: bytes) -> str:
        """Create by hard link, which fails if the name exists."""
        with self._locked("put", key):
            temporary = self._write_temporary(body)
            try:
                target = self._prepared(key)
                os.link(temporary, target)
                _sync_directory(target.parent)
            except FileExistsError as error:
                raise PreconditionFailedError(f"{key} exists") from error
            finally:
                temporary.unlink()
        return _digest(body)

    def put_if_match(self, key: str, body: bytes, *, etag: str) -> str:
        """Compare and replace while holding the store's lock."""
        with self._locked("put", key):
            try:
                current = _digest(self._path(key).read_bytes())
            except FileNotFoundError:
                current = ""
            if current != etag:
                raise PreconditionFailedError(f"{key} is no longer the version that was read")
            self._replace(key, body)
        return _digest(body)

    def list(self, prefix: str) -> Iterator[ObjectSummary]:
        """All objects under `prefix`, sorted; the etag of a listing is size, time and inode."""
        start = self._root / prefix.rpartition("/")[0]
        if ".." in prefix.split("/") or prefix.startswith("/"):
            raise InvalidSettingError(field="prefix", value=prefix, accepted="a relative prefix")
        with self._translated("list", prefix):
            found = [self._key_of(Path(folder) / name) for folder, name in self._walk(start)]
        for key in sorted(key for key in found if key.startswith(prefix)):
            try:
                status = (self._root / key).lstat()
            except FileNotFoundError:
                continue  # deleted while listing
            yield ObjectSummary(
                key=key,
                size_bytes=status.st_size,
                etag=f"{status.st_size}-{status.st_mtime_ns}-{status.st_ino}",
                modified_at=status.st_mtime,
            )

    def delete(self, key: str) -> None:
        """Remove; no error if absent."""
        with self._locked("delete", key):
            self._path(key).unlink(missing_ok=True)

    def upload_file(self, path: Path, key: str) -> None:
        """Copy a file into the store, then rename it into place."""
        with self._locked("put", key, exclusive=False):
            temporary = self._temporary()
            try:
                shutil.copyfile(path, temporary)
                _sync_file(temporary)
                self._publish(temporary, key)
            finally:
                temporary.unlink(missing_ok=True)

    def download_file(self, key: str, path: Path) -> None:
        """Copy an object to `path.part`, then rename."""
        part = path.with_name(path.name + ".part")
        with self._translated("get", key):
            source = self._path(key)
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, part)
        part.replace(path)

    def probe(self) -> None:
        """Write, read and delete a tiny object."""
        key = f"probe-{uuid.uuid4().hex}"
        self.put(key, b"probe")
        self.get(key)
        self.delete(key)

    def _walk(self, start: Path) -> Iterator[tuple[str, str]]:
        for folder, folders, names in os.walk(start):
            if _PRIVATE in folders:
                folders.remove(_PRIVATE)
            yield from ((folder, name) for name in names)

    def _key_of(self, path: Path) -> str:
        return path.relative_to(self._root).as_posix()

    def _path(self, key: str) -> Path:
        path = self._root / validate_key(key)
        resolved = Path(os.path.realpath(path))
        if key.split("/")[0] == _PRIVATE or not resolved.is_relative_to(self._root):
            raise InvalidSettingError(field="key", value=key, accepted="a key inside the store")
        return path

    def _prepared(self, key: str) -> Path:
        path = self._path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def _temporary(self) -> Path:
        return self._private / uuid.uuid4().hex

    def _write_temporary(self, body: bytes) -> Path:
        path = self._temporary()
        try:
            with path.open("xb") as target:
                target.write(body)
                target.flush()
                os.fsync(target.fileno())
        except OSError:
            path.unlink(missing_ok=True)
            raise
        return path

    def _replace(self, key: str, body: bytes) -> None:
        temporary = self._write_temporary(body)
        try:
            self._publish(temporary, key)
        finally:
            temporary.unlink(missing_ok=True)

    def _publish(self, temporary: Path, key: str) -> None:
        target = self._prepared(key)
        temporary.replace(target)
        _sync_directory(target.parent)

    @contextmanager
    def _locked(self, action: str, key: str, *, exclusive: bool = True) -> Iterator[None]:
        self._path(key)
        with self._translated(action, key):
            self._private.mkdir(parents=True, exist_ok=True)
            with (self._private / "lock").open("ab") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH)
                yield

    @contextmanager
    def _translated(self, action: str, key: str) -> Iterator[None]:
        try:
            yield
        except (FileNotFoundError, IsADirectoryError) as error:
            raise NotFoundError(f"{self.url}: no object {key}") from error
        except OSError as error:
            kind = StoreAccessError if error.errno in _REFUSED else StoreUnavailableError
            raise kind(f"{action} {key} in {self.url}: {error.strerror}") from error


def _digest(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def _sync_file(path: Path) -> None:
    with path.open("rb") as source:
        os.fsync(source.fileno())


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
