"""Moving trees of files to and from a store, hashed on the way. Decides nothing about commits."""

import hashlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from m1.infra.errors import CorruptObjectError, InvalidSettingError
from m1.infra.manifest import ObjectEntry
from m1.infra.names import validate_key
from m1.infra.store.protocol import Store

_CHUNK_BYTES = 1 << 20


def hash_file(path: Path) -> tuple[int, str]:
    """Size in bytes and sha256 of a file, read in chunks."""
    digest, size_bytes = hashlib.sha256(), 0
    with path.open("rb") as source:
        while chunk := source.read(_CHUNK_BYTES):
            digest.update(chunk)
            size_bytes += len(chunk)
    return size_bytes, digest.hexdigest()


def upload_tree(
    store: Store, prefix: str, directory: Path, *, workers: int = 4
) -> tuple[ObjectEntry, ...]:
    """Upload every file under `directory`; entries are relative to it and sorted by key.

    Raises:
        InvalidSettingError: the tree holds a symbolic link.
        CorruptObjectError: a file changed, or the store holds another size than was sent.
    """
    paths = sorted(path for path in directory.rglob("*") if path.is_symlink() or path.is_file())
    for path in paths:
        if path.is_symlink():
            raise InvalidSettingError(field="file", value=str(path), accepted="a regular file")

    def upload(path: Path) -> ObjectEntry:
        key = path.relative_to(directory).as_posix()
        size_bytes, sha256 = hash_file(path)
        store.upload_file(path, prefix + key)
        if hash_file(path) != (size_bytes, sha256):
            raise CorruptObjectError(f"{key} changed while it was uploaded")
        return ObjectEntry(key=key, size_bytes=size_bytes, sha256=sha256)

    with ThreadPoolExecutor(workers) as pool:
        entries = sorted(pool.map(upload, paths), key=lambda entry: entry.key)
    sizes = {item.key: item.size_bytes for item in store.list(prefix)}
    for entry in entries:
        if sizes.get(prefix + entry.key) != entry.size_bytes:
            raise CorruptObjectError(f"{prefix + entry.key} was not stored whole")
    return tuple(entries)


def download_entries(
    store: Store,
    prefix: str,
    entries: Iterable[ObjectEntry],
    directory: Path,
    *,
    workers: int = 4,
) -> None:
    """Download entries; a file is visible only after size and sha256 were checked."""

    def download(entry: ObjectEntry) -> None:
        _download(store, prefix + entry.key, entry, _confined(directory, entry.key))

    with ThreadPoolExecutor(workers) as pool:
        for _ in pool.map(download, entries):
            pass


def _confined(directory: Path, key: str) -> Path:
    target = directory / validate_key(key)
    if not target.resolve().is_relative_to(directory.resolve()):
        raise InvalidSettingError(field="key", value=key, accepted="a key inside the folder")
    return target


def _download(store: Store, key: str, entry: ObjectEntry, target: Path) -> None:
    wanted = (entry.size_bytes, entry.sha256)
    if target.is_file() and hash_file(target) == wanted:
        return
    unverified = target.with_name(target.name + ".unverified")
    for _ in range(2):  # ours: one clean re-read tells a broken transfer from broken storage
        store.download_file(key, unverified)
        if hash_file(unverified) == wanted:
            unverified.replace(target)
            return
    unverified.unlink()
    raise CorruptObjectError(f"{key} does not match its recorded size and sha256")
