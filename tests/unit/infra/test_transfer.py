"""No file becomes visible before its size and digest were checked."""

import hashlib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from m1.infra.errors import CorruptObjectError, InvalidSettingError, NotFoundError
from m1.infra.manifest import ObjectEntry
from m1.infra.store.local import LocalStore
from m1.infra.transfer import download_entries, hash_file, upload_tree
from tests.fakes.memory_store import MemoryStore

BODY = bytes(range(256)) * 40


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    folder = tmp_path / "tree"
    (folder / "weights").mkdir(parents=True)
    (folder / "weights" / "x").write_bytes(BODY)
    (folder / "empty").write_bytes(b"")
    return folder


def test_a_tree_survives_the_round_trip(tree: Path, tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "store")
    entries = upload_tree(store, "a/b/", tree)
    assert [entry.key for entry in entries] == ["empty", "weights/x"]
    assert entries[1].sha256 == hashlib.sha256(BODY).hexdigest()
    download_entries(store, "a/b/", entries, tmp_path / "back")
    assert (tmp_path / "back" / "weights" / "x").read_bytes() == BODY
    assert (tmp_path / "back" / "empty").read_bytes() == b""
    assert len([p for p in (tmp_path / "back").rglob("*") if p.is_file()]) == 2


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.integers(0, len(BODY) - 1), st.integers(1, 255))
def test_a_flipped_byte_is_never_visible(tmp_path: Path, position: int, flip: int) -> None:
    broken = bytearray(BODY)
    broken[position] ^= flip
    refused(tmp_path, bytes(broken))


@pytest.mark.parametrize("body", [b"", BODY[:-1], BODY[:1], BODY + b"x"])
def test_a_truncated_or_longer_file_is_never_visible(tmp_path: Path, body: bytes) -> None:
    refused(tmp_path, body)


def refused(tmp_path: Path, stored: bytes) -> None:
    store = MemoryStore()
    store.put("p/file", stored)
    with pytest.raises(CorruptObjectError, match="p/file"):
        download_entries(store, "p/", [entry("file", BODY)], tmp_path / "out")
    assert not any(path.is_file() for path in (tmp_path / "out").rglob("*"))


def test_a_broken_transfer_is_read_once_more(tmp_path: Path) -> None:
    class BreaksOnce(MemoryStore):
        tries = 0

        def download_file(self, key: str, path: Path) -> None:
            super().download_file(key, path)
            self.tries += 1
            if self.tries == 1:
                path.write_bytes(b"broken")

    store = BreaksOnce()
    store.put("file", BODY)
    download_entries(store, "", [entry("file", BODY)], tmp_path)
    assert (tmp_path / "file").read_bytes() == BODY
    assert store.tries == 2


def test_what_is_there_and_right_is_not_fetched_again(tmp_path: Path) -> None:
    reads: list[str] = []
    store = MemoryStore(before=lambda action, key: reads.append(f"{action} {key}"))
    store.put("file", BODY)
    for expected in (1, 1):
        download_entries(store, "", [entry("file", BODY)], tmp_path)
        assert reads.count("get file") == expected
    (tmp_path / "file").write_bytes(b"somebody changed it")
    download_entries(store, "", [entry("file", BODY)], tmp_path)
    assert (tmp_path / "file").read_bytes() == BODY


@pytest.mark.parametrize("key", ["../outside", "/outside", "a/../../outside", "a\\b", "a\x00"])
def test_a_hostile_key_writes_nothing(tmp_path: Path, key: str) -> None:
    (tmp_path / "in").mkdir()
    with pytest.raises(InvalidSettingError):
        download_entries(MemoryStore(), "", [entry(key, BODY)], tmp_path / "in")
    assert list(tmp_path.rglob("*")) == [tmp_path / "in"]


def test_a_link_out_of_the_folder_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "link").symlink_to(tmp_path)
    store = MemoryStore()
    store.put("link/file", BODY)
    with pytest.raises(InvalidSettingError):
        download_entries(store, "", [entry("link/file", BODY)], tmp_path / "in")
    assert not (tmp_path / "file").exists()


def test_links_are_not_uploaded(tree: Path) -> None:
    (tree / "link").symlink_to("/etc/passwd")
    store = MemoryStore()
    with pytest.raises(InvalidSettingError, match="regular file"):
        upload_tree(store, "p/", tree)
    assert list(store.list("")) == []


def test_a_missing_object_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        download_entries(MemoryStore(), "", [entry("file", BODY)], tmp_path)


def test_a_file_that_changes_under_the_upload_is_refused(tree: Path) -> None:
    class Changes(MemoryStore):
        def upload_file(self, path: Path, key: str) -> None:
            super().upload_file(path, key)
            path.write_bytes(b"changed")

    with pytest.raises(CorruptObjectError, match="changed"):
        upload_tree(Changes(), "p/", tree)


def test_an_upload_that_is_not_stored_whole_is_refused(tree: Path) -> None:
    class Truncates(MemoryStore):
        def upload_file(self, path: Path, key: str) -> None:
            self.put(key, path.read_bytes()[:-1])

    with pytest.raises(CorruptObjectError, match="not stored whole"):
        upload_tree(Truncates(), "p/", tree)


def test_hash_file_reads_in_chunks(tmp_path: Path) -> None:
    body = b"ab" * (3 << 19) + b"c"
    (tmp_path / "file").write_bytes(body)
    assert hash_file(tmp_path / "file") == (len(body), hashlib.sha256(body).hexdigest())


def entry(key: str, body: bytes) -> ObjectEntry:
    return ObjectEntry(key=key, size_bytes=len(body), sha256=hashlib.sha256(body).hexdigest())
