"""S3 that damages, straggles or answers nonsense: every reader notices, within bounded tries."""

import itertools
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any
from urllib.parse import urlsplit

import pytest
from botocore.exceptions import ReadTimeoutError

from m1.infra.canonical_json import sha256_hex
from m1.infra.errors import (
    CorruptObjectError,
    PreconditionFailedError,
    StoreUnavailableError,
)
from m1.infra.manifest import ObjectEntry
from m1.infra.store.s3 import S3Store
from m1.infra.transfer import download_entries
from tests.fakes.cutting_proxy import CuttingProxy
from tests.fakes.s3_answers import Answers, lose_one_answer

BODY = bytes(range(256)) * 1200
IN_THE_BODY = 100_000  # far behind the headers of an answer
LARGE = 17 << 20  # two parts of a multipart upload

Connect = Callable[..., Any]


def flipped(endpoint: str, flips: dict[int, int]) -> CuttingProxy:
    where = urlsplit(endpoint)
    assert where.hostname is not None
    assert where.port is not None
    return CuttingProxy((where.hostname, where.port), [], flips=flips)


@pytest.mark.fault(14, ending="recovered")
def test_a_bit_that_flips_once_is_read_again(
    connect: Connect, endpoint: str, store: S3Store, tmp_path: Path
) -> None:
    store.put("body", BODY)
    with flipped(endpoint, {0: IN_THE_BODY}) as proxy:
        client = connect(proxy.endpoint)
        client.meta.events.register("before-send.s3.GetObject", _close_connections(client))
        broken = S3Store("bucket", prefix="prefix", client=client)

        assert broken.get("body").body == BODY
        assert proxy.connections == 2


@pytest.mark.fault(14, ending="refused")
def test_a_body_that_is_always_damaged_is_refused_by_name(
    connect: Connect, endpoint: str, store: S3Store, tmp_path: Path
) -> None:
    store.put("body", BODY)
    always = dict.fromkeys(range(99), IN_THE_BODY)
    for read in (
        lambda broken: broken.get("body"),
        lambda broken: broken.download_file("body", tmp_path / "file"),
    ):
        with flipped(endpoint, always) as proxy:
            client = connect(proxy.endpoint)
            client.meta.events.register("before-send.s3.GetObject", _close_connections(client))
            with pytest.raises(CorruptObjectError, match="wrong checksum, twice"):
                read(S3Store("bucket", prefix="prefix", client=client))
    assert not (tmp_path / "file").exists()


@pytest.mark.fault(14, ending="refused")
def test_a_range_carries_no_checksum_so_the_digest_of_the_manifest_decides(
    connect: Connect, endpoint: str, store: S3Store, tmp_path: Path
) -> None:
    store.put("body", BODY)
    entry = ObjectEntry(key="body", size_bytes=len(BODY), sha256=sha256_hex(BODY))
    always = dict.fromkeys(range(99), IN_THE_BODY)
    with flipped(endpoint, always) as proxy:
        client = connect(proxy.endpoint)
        client.meta.events.register("before-send.s3.GetObject", _close_connections(client))
        broken = S3Store("bucket", prefix="prefix", client=client)

        assert broken.get_range("body", start_bytes=1, length_bytes=len(BODY)) != BODY[1:]
        with pytest.raises(CorruptObjectError, match="body"):
            download_entries(broken, "", [entry], tmp_path)
    assert not (tmp_path / "body").exists()


def _close_connections(client: Any) -> Callable[..., None]:
    """Each request on a connection of its own, so that the proxy can tell them apart."""

    def close(**_: object) -> None:
        client._endpoint.http_session._manager.clear()

    return close


@pytest.mark.fault(11, ending="recovered")
@pytest.mark.parametrize(("status", "code"), [(500, "InternalError"), (503, "SlowDown")])
def test_a_burst_shorter_than_the_tries_is_not_noticed(
    client: Any, store: S3Store, status: int, code: str, record_property: Any
) -> None:
    for operation in ("PutObject", "GetObject", "ListObjectsV2", "DeleteObject"):
        Answers(client, operation, status, code, times=2)
    started = time.monotonic()

    store.put("key", b"body")
    assert store.get("key").body == b"body"
    assert [item.key for item in store.list("key")] == ["key"]
    store.delete("key")

    record_property("tries", 4)
    record_property("recovery_seconds", [(time.monotonic() - started) / 4])


@pytest.mark.fault(11, ending="refused")
@pytest.mark.parametrize(("status", "code"), [(500, "InternalError"), (503, "SlowDown")])
def test_a_burst_without_end_is_refused_within_bounded_tries_and_time(
    client: Any, store: S3Store, status: int, code: str
) -> None:
    operations = {
        "PutObject": lambda: store.put("key", b"body"),
        "GetObject": lambda: store.get("key"),
        "ListObjectsV2": lambda: list(store.list("key")),
        "DeleteObject": lambda: store.delete("key"),
    }
    for operation, act in operations.items():
        answers = Answers(client, operation, status, code)
        started = time.monotonic()
        with pytest.raises(StoreUnavailableError, match=f"{operation}.*{code}"):
            act()
        assert answers.count == 3
        assert time.monotonic() - started < 20


@pytest.mark.fault(11, ending="contained")
def test_random_throttling_ends_each_call_well_or_by_name(
    client: Any, store: S3Store, record_property: Any
) -> None:
    random, counted = Random(7), itertools.count()

    def throttle(request: Any, **_: object) -> Any:
        next(counted)
        return throttled(request) if random.random() < 0.3 else None

    throttled = Answers(client, "Nothing", 503, "SlowDown")
    client.meta.events.register("before-send.s3.PutObject", throttle)
    failed = 0
    for number in range(30):
        try:
            store.put(f"key-{number}", b"body")
        except StoreUnavailableError:
            failed += 1

    record_property("tries", 30)
    assert len(list(store.list("key-"))) == 30 - failed
    assert failed < 5
    assert next(counted) <= 90


@pytest.mark.fault(16, ending="recovered")
def test_a_conflict_is_neither_won_nor_lost_but_tried_again(client: Any, store: S3Store) -> None:
    answers = Answers(client, "PutObject", 409, "ConditionalRequestConflict", times=2)

    etag = store.put_if_absent("conflict/create", b"ours")

    assert store.get("conflict/create").etag == etag
    assert answers.count == 3


@pytest.mark.fault(16, ending="refused")
def test_a_conflict_without_end_is_a_loss(client: Any, store: S3Store) -> None:
    answers = Answers(client, "PutObject", 409, "ConditionalRequestConflict")

    with pytest.raises(PreconditionFailedError):
        store.put_if_absent("conflict/forever", b"ours")
    assert answers.count == 4


@pytest.mark.fault(18, ending="refused")
@pytest.mark.parametrize(
    ("status", "body"),
    [(200, b"<html>welcome to the hotel</html>"), (200, b"\x00\xff not XML"), (200, b"<List"),
     (301, b"<Error><Code>PermanentRedirect</Code></Error>"), (304, b"")],
)  # fmt: skip
def test_nonsense_is_not_taken_for_an_answer(
    client: Any, store: S3Store, status: int, body: bytes
) -> None:
    store.put("nonsense/key", b"body")
    Answers(client, "ListObjectsV2", status, "", body=body)
    Answers(client, "PutObject", 301, "PermanentRedirect")

    with pytest.raises(StoreUnavailableError):
        list(store.list("nonsense/"))
    with pytest.raises(StoreUnavailableError, match="PermanentRedirect"):
        store.put("nonsense/key", b"other")


@pytest.mark.fault(18, ending="recovered")
def test_an_upload_that_is_refused_with_200_is_completed_again(
    client: Any, store: S3Store, tmp_path: Path
) -> None:
    answers = Answers(client, "CompleteMultipartUpload", 200, "InternalError", times=1)
    (tmp_path / "large").write_bytes(b"x" * LARGE)

    store.upload_file(tmp_path / "large", "large/completed")

    assert answers.count == 2
    assert next(iter(store.list("large/completed"))).size_bytes == LARGE


@pytest.mark.fault(23, ending="recovered")
def test_one_straggling_part_is_sent_again_alone(
    connect: Connect, endpoint: str, tmp_path: Path
) -> None:
    client = connect(endpoint, read_timeout=60)
    client.create_bucket(Bucket="bucket")
    store = S3Store("bucket", prefix="prefix", client=client)
    parts: list[str] = []

    def straggle(request: Any, **_: object) -> None:
        parts.append(request.url)
        if len(parts) == 1:
            raise ReadTimeoutError(endpoint_url=request.url)

    client.meta.events.register("before-send.s3.UploadPart", straggle)
    (tmp_path / "large").write_bytes(b"x" * LARGE)

    store.upload_file(tmp_path / "large", "large/straggled")

    assert len(parts) == 3
    assert len(set(parts)) == 2
    assert next(iter(store.list("large/straggled"))).size_bytes == LARGE


@pytest.mark.fault(19, ending="contained")
def test_an_upload_that_fails_leaves_neither_object_nor_parts(
    client: Any, store: S3Store, tmp_path: Path
) -> None:
    Answers(client, "UploadPart", 503, "SlowDown")
    (tmp_path / "large").write_bytes(b"x" * LARGE)

    with pytest.raises(StoreUnavailableError, match="SlowDown"):
        store.upload_file(tmp_path / "large", "large/failed")

    assert list(store.list("large/failed")) == []
    assert client.list_multipart_uploads(Bucket="bucket").get("Uploads", []) == []


@pytest.mark.fault(15, ending="recovered")
@pytest.mark.parametrize("body", [b"", b"x", BODY])
def test_a_lost_answer_to_a_plain_write_is_written_again(
    client: Any, store: S3Store, body: bytes
) -> None:
    lose_one_answer(client)
    store.put("lost/plain", body)
    assert store.get("lost/plain").body == body
