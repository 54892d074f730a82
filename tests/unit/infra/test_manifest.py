"""A commit is whole or it is nothing, and a stage has one."""

import dataclasses
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m1.infra.canonical_json import canonical_json, parse_json
from m1.infra.errors import CorruptObjectError, LeaseLostError, PreconditionFailedError
from m1.infra.manifest import Commit, ObjectEntry, load_commit, verify_objects, write_commit
from m1.infra.names import attempt_prefix, commit_key
from m1.infra.transfer import hash_file, upload_tree
from tests.fakes.memory_store import MemoryStore


def commit_of(attempt: str = "0001-aaaaaaaa", **changes: object) -> Commit:
    commit = Commit(
        run="r", stage="sft", fingerprint="f" * 64, attempt=attempt, fence=1,
        parents={"pretrain": "d" * 64},
        objects=(ObjectEntry(key="outputs/weights", size_bytes=3, sha256="0" * 64),),
        settings={"steps": 2}, metrics={"loss": 1.5}, versions={"torch": "2"}, layout={},
        steps=2, tokens=100, seconds=1.25, committed_at="2026-01-01T00:00:00+00:00",
    )  # fmt: skip
    return dataclasses.replace(commit, **changes)


def test_round_trip_keeps_the_digest() -> None:
    commit = commit_of()
    again = Commit.from_bytes(commit.to_bytes())
    assert again == commit
    assert again.digest == commit.digest
    assert commit_of(steps=3).digest != commit.digest


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 10_000))
def test_a_torn_manifest_is_corrupt(cut: int) -> None:
    body = commit_of().to_bytes()
    with pytest.raises(CorruptObjectError):
        Commit.from_bytes(body[: cut % len(body)])


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 255))
def test_a_flipped_byte_is_corrupt_or_another_commit(position: int, flip: int) -> None:
    commit = commit_of()
    body = bytearray(commit.to_bytes())
    body[position % len(body)] ^= flip
    try:
        again = Commit.from_bytes(bytes(body))
    except CorruptObjectError:
        return
    assert again.digest != commit.digest


@pytest.mark.parametrize("version", [0, 2, "1", None])
def test_an_unknown_version_is_named_with_ours(version: object) -> None:
    value = parse_json(commit_of().to_bytes())
    value["schema_version"] = version
    with pytest.raises(CorruptObjectError, match=rf"version {version!r}; this program reads 1"):
        Commit.from_bytes(canonical_json(value))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("objects", {}), ("objects", [1]), ("objects", [{"key": "a"}]), ("steps", "2"),
        ("steps", True), ("parents", []), ("run", 1), ("extra", 1), ("seconds", None),
    ],
)  # fmt: skip
def test_a_field_of_the_wrong_kind_is_corrupt(name: str, value: object) -> None:
    document = parse_json(commit_of().to_bytes())
    document[name] = value
    with pytest.raises(CorruptObjectError):
        Commit.from_bytes(canonical_json(document))


@pytest.mark.parametrize("key", ["../x", "/etc/passwd", "a/../../b", "a\\b", ""])
def test_a_manifest_cannot_name_an_object_outside(key: str) -> None:
    entry = ObjectEntry(key=key, size_bytes=1, sha256="0" * 64)
    with pytest.raises(CorruptObjectError):
        Commit.from_bytes(commit_of(objects=(entry,)).to_bytes())


def test_a_stage_without_commit_is_not_done() -> None:
    assert load_commit(MemoryStore(), "r", "sft") is None


def test_a_commit_of_another_stage_is_corrupt_here() -> None:
    store = MemoryStore()
    store.put(commit_key("r", "pretrain"), commit_of().to_bytes())
    with pytest.raises(CorruptObjectError, match="r/sft"):
        load_commit(store, "r", "pretrain")


def test_sixteen_committers_have_one_winner() -> None:
    store = MemoryStore()
    winners: list[str] = []
    losers: list[LeaseLostError] = []
    barrier = threading.Barrier(16)

    def commit(number: int) -> None:
        barrier.wait()
        try:
            winners.append(write_commit(store, commit_of(f"{number:04d}-aaaaaaaa")).attempt)
        except LeaseLostError as error:
            losers.append(error)

    threads = [threading.Thread(target=commit, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(winners) == 1
    assert len(losers) == 15
    assert all(winners[0] in str(error) for error in losers)
    assert load_commit(store, "r", "sft").attempt == winners[0]


def test_the_same_attempt_may_commit_again() -> None:
    store, commit = MemoryStore(), commit_of()
    write_commit(store, commit)
    later = dataclasses.replace(commit, committed_at="2026-01-02T00:00:00+00:00")
    assert write_commit(store, later) == commit


def test_a_lost_answer_does_not_lose_the_commit() -> None:
    class LosesAnswers(MemoryStore):
        def put_if_absent(self, key: str, body: bytes) -> str:
            super().put_if_absent(key, body)
            raise PreconditionFailedError("the retry of a write that had landed")

    store, commit = LosesAnswers(), commit_of()
    assert write_commit(store, commit) == commit


def test_every_problem_of_the_objects_is_told(tmp_path) -> None:
    store, prefix = MemoryStore(), attempt_prefix("r", "sft", "0001-aaaaaaaa")
    for name in ("good", "gone", "short", "flipped"):
        (tmp_path / name).write_bytes(b"0123456789" * 1000)
    commit = commit_of(objects=upload_tree(store, prefix, tmp_path))
    assert verify_objects(store, commit, full=True) == []
    store.delete(prefix + "gone")
    store.put(prefix + "short", b"012")
    store.put(prefix + "flipped", b"0123456789" * 999 + b"0123456788")
    quick = ["gone: missing", "short: 3 bytes, not 10000"]
    assert sorted(verify_objects(store, commit, full=False)) == quick
    assert set(verify_objects(store, commit, full=True)) == {*quick, "flipped: wrong sha256"}
    assert hash_file(tmp_path / "good")[0] == 10_000
