"""Every store keeps the same promises: one suite over a directory and S3 (moto)."""

import threading
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from m1.infra.errors import InvalidSettingError, NotFoundError, PreconditionFailedError
from m1.infra.store.local import LocalStore
from m1.infra.store.protocol import Store
from m1.infra.store.s3 import S3Store
from moto.server import ThreadedMotoServer


@pytest.fixture(params=["local", "moto"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    if request.param == "local":
        yield LocalStore(tmp_path / "store")
        return
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    client = boto3.client(
        "s3",
        endpoint_url=f"http://{host}:{port}",
        region_name="us-east-1",
        aws_access_key_id="test",
        aws_secret_access_key="test",  # noqa: S106 - moto takes any
    )
    client.create_bucket(Bucket="bucket")
    yield S3Store("bucket", prefix="some/prefix", client=client)
    client.close()
    server.stop()


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
