"""Every store keeps the same promises: a directory, memory, and S3 on moto and on SeaweedFS."""

import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from moto.server import ThreadedMotoServer

from m1.infra.errors import InvalidSettingError, NotFoundError, PreconditionFailedError
from m1.infra.store.local import LocalStore
from m1.infra.store.protocol import Store
from m1.infra.store.s3 import S3Store
from tests.fakes.memory_store import MemoryStore
from tests.s3_server import S3Server


@pytest.fixture(scope="module")
def moto_endpoint() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(params=["local", "memory", "moto", "seaweed"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    if request.param == "local":
        yield LocalStore(tmp_path / "store")
    elif request.param == "memory":
        yield MemoryStore()
    elif request.param == "moto":
        yield from _moto_store(request.getfixturevalue("moto_endpoint"))
    else:
        server: S3Server = request.getfixturevalue("s3_server")
        client = server.client()
        yield S3Store(server.bucket, prefix=uuid.uuid4().hex, client=client)
        client.close()


def _moto_store(endpoint: str) -> Iterator[Store]:
    client = boto3.client(
        "s3",
        endpoint_url=endpoint,
        region_name="us-east-1",
        aws_access_key_id="test",
        aws_secret_access_key="test",  # noqa: S106 - moto takes any
    )
    client.create_bucket(Bucket="bucket")
    yield S3Store("bucket", prefix=uuid.uuid4().hex, client=client)
    client.close()


def test_sixteen_creators_have_one_winner(store: Store) -> None:
    outcomes: list[bool] = []
    barrier = threading.Barrier(16)

    def create(number: int) -> None:
        barrier.wait()
        try:
            store.put_if_absent("race", b"%d" % number)
            outcomes.append(True)
        except PreconditionFailedError:
            outcomes.append(False)

    threads = [threading.Thread(target=create, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(outcomes) == 16
    assert outcomes.count(True) == 1


def test_a_stale_etag_cannot_replace(store: Store) -> None:
    first = store.put_if_absent("key", b"one")
    store.put_if_match("key", b"two", etag=first)
    with pytest.raises(PreconditionFailedError):
        store.put_if_match("key", b"three", etag=first)
    assert store.get("key").body == b"two"


def test_sixteen_replacers_have_one_winner(store: Store) -> None:
    etag = store.put("race", b"start")
    outcomes: list[bool] = []
    barrier = threading.Barrier(16)

    def replace(number: int) -> None:
        barrier.wait()
        try:
            store.put_if_match("race", b"%d" % number, etag=etag)
            outcomes.append(True)
        except PreconditionFailedError:
            outcomes.append(False)

    threads = [threading.Thread(target=replace, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(outcomes) == 16
    assert outcomes.count(True) == 1


def test_an_absent_key_cannot_be_matched(store: Store) -> None:
    etag = store.put("other", b"one")
    with pytest.raises(PreconditionFailedError):
        store.put_if_match("key", b"two", etag=etag)
    with pytest.raises(NotFoundError):
        store.get("key")


def test_a_read_etag_replaces(store: Store) -> None:
    store.put("key", b"one")
    etag = store.put_if_match("key", b"two", etag=store.get("key").etag)
    assert store.get("key").etag == etag


def test_put_and_delete_are_idempotent(store: Store) -> None:
    for _ in range(2):
        store.put("key", b"body")
    assert store.get("key").body == b"body"
    for _ in range(2):
        store.delete("key")
    assert list(store.list("")) == []


def test_an_empty_object_is_an_object(store: Store, tmp_path: Path) -> None:
    store.put("empty", b"")
    assert store.get("empty").body == b""
    assert store.get_range("empty", start_bytes=0, length_bytes=5) == b""
    store.download_file("empty", tmp_path / "empty")
    assert (tmp_path / "empty").read_bytes() == b""


def test_names_with_spaces_and_unicode_survive(store: Store) -> None:
    keys = sorted(["a b/c+d", "a b/zw\u00f6lf", "a b/100%"])
    for key in keys:
        store.put(key, key.encode())
    assert [item.key for item in store.list("a b/")] == keys
    assert [store.get(key).body.decode() for key in keys] == keys


def test_a_prefix_need_not_end_at_a_slash(store: Store) -> None:
    for key in ("step-1/x", "step-10/x", "other"):
        store.put(key, b"x")
    assert [item.key for item in store.list("step-1")] == ["step-1/x", "step-10/x"]
    assert [item.key for item in store.list("step-1/")] == ["step-1/x"]


def test_a_missing_download_leaves_no_file(store: Store, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        store.download_file("nothing", tmp_path / "file")
    assert not (tmp_path / "file").exists()
    with pytest.raises(NotFoundError):
        store.get_range("nothing", start_bytes=0, length_bytes=1)


def test_probe_leaves_nothing_behind(store: Store) -> None:
    store.probe()
    assert list(store.list("")) == []


def test_lists_are_sorted_and_prefixed(store: Store) -> None:
    for key in ("a/c", "a/b/d", "b"):
        store.put(key, b"xy")
    assert [(item.key, item.size_bytes) for item in store.list("a/")] == [("a/b/d", 2), ("a/c", 2)]


def test_ranges_stop_at_the_end(store: Store) -> None:
    store.put("key", b"0123456789")
    assert store.get_range("key", start_bytes=3, length_bytes=4) == b"3456"
    assert store.get_range("key", start_bytes=8, length_bytes=9) == b"89"


def test_a_missing_key_is_not_found_and_deletable(store: Store) -> None:
    with pytest.raises(NotFoundError):
        store.get("nothing")
    store.delete("nothing")


def test_a_large_file_survives_the_round_trip(store: Store, tmp_path: Path) -> None:
    body = bytes(range(256)) * (80 << 10)
    (tmp_path / "large").write_bytes(body)
    store.upload_file(tmp_path / "large", "large")
    store.download_file("large", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == body


@pytest.mark.parametrize("key", ["../x", "/x", "a//b", "a\\b", "a\x00", "", "a" * 1025])
def test_hostile_keys_are_refused(store: Store, key: str) -> None:
    with pytest.raises(InvalidSettingError):
        store.put(key, b"x")
    with pytest.raises(InvalidSettingError):
        store.get(key)
