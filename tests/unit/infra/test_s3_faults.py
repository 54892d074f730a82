"""What S3 and the network do wrong, and the one error each becomes."""

import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from m1.infra.errors import (
    PreconditionFailedError,
    StoreAccessError,
    StoreUnavailableError,
)
from m1.infra.lease import Lease, current_holder
from m1.infra.store.s3 import S3Store, make_client
from tests.fakes.cutting_proxy import CuttingProxy
from tests.fakes.s3_answers import Answers, lose_one_answer

BODY = bytes(range(256)) * 1200


@pytest.mark.parametrize(
    ("status", "code"),
    [(403, "AccessDenied"), (403, "SignatureDoesNotMatch"), (403, "Odd"), (400, "ExpiredToken"),
     (404, "NoSuchBucket")],
)  # fmt: skip
def test_a_refusal_is_not_retried_and_names_action_and_bucket(
    client: Any, store: S3Store, status: int, code: str
) -> None:
    answers = Answers(client, "PutObject", status, code)
    with pytest.raises(StoreAccessError, match=rf"PutObject.*'bucket': {code}") as caught:
        store.put("key", b"body")
    assert answers.count == 1
    assert "test" not in str(caught.value)


def test_a_missing_bucket_is_named_by_the_probe(client: Any) -> None:
    with pytest.raises(StoreAccessError, match="'no-such-bucket'"):
        S3Store("no-such-bucket", prefix="", client=client).probe()


def test_no_credentials_are_an_access_error(
    endpoint: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    client = make_client(endpoint)
    with pytest.raises(StoreAccessError, match="no credentials"):
        S3Store("bucket", prefix="", client=client).get("key")
    client.close()


def test_two_hiccups_are_healed(client: Any, store: S3Store) -> None:
    answers = Answers(client, "PutObject", 503, "SlowDown", times=2)
    store.put("key", b"body")
    assert answers.count == 3
    assert store.get("key").body == b"body"


def test_an_overloaded_store_is_unavailable_after_bounded_tries(
    client: Any, store: S3Store
) -> None:
    answers = Answers(client, "PutObject", 503, "SlowDown")
    with pytest.raises(StoreUnavailableError, match="SlowDown"):
        store.put("key", b"body")
    assert answers.count == 3


def test_a_closed_port_is_unavailable(connect: Callable[..., Any]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    store = S3Store("bucket", prefix="", client=connect(f"http://127.0.0.1:{port}"))
    with pytest.raises(StoreUnavailableError, match="EndpointConnectionError"):
        store.get("key")


def test_a_silent_server_is_unavailable_in_bounded_time(connect: Callable[..., Any]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        store = S3Store("bucket", prefix="", client=connect(url, read_timeout=0.2))
        started = time.monotonic()
        with pytest.raises(StoreUnavailableError, match="ReadTimeoutError"):
            store.put_if_absent("key", b"body")
        assert time.monotonic() - started < 10


def test_our_clients_have_bounded_tries_and_timeouts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    with pytest.raises(StoreAccessError, match="AWS_SECRET_ACCESS_KEY"):
        make_client("http://127.0.0.1:1")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    client = make_client("http://127.0.0.1:1")
    config = client.meta.config
    assert (config.connect_timeout, config.read_timeout) == (5, 30)
    assert config.retries["total_max_attempts"] == 4
    client.close()


def test_a_lost_answer_to_create_is_still_ours(client: Any, store: S3Store) -> None:
    lose_one_answer(client)
    etag = store.put_if_absent("lost/create", b"ours")
    assert store.get("lost/create").etag == etag


def test_a_lost_answer_to_replace_is_still_ours(client: Any, store: S3Store) -> None:
    etag = store.put("lost/replace", b"old")
    lose_one_answer(client)
    new = store.put_if_match("lost/replace", b"ours", etag=etag)
    assert store.get("lost/replace").etag == new


def test_a_lost_answer_behind_a_rival_is_a_loss(client: Any, store: S3Store) -> None:
    store.put("lost/rival", b"theirs")
    lose_one_answer(client)
    with pytest.raises(PreconditionFailedError):
        store.put_if_absent("lost/rival", b"ours")
    assert store.get("lost/rival").body == b"theirs"


def test_a_lease_survives_lost_answers(client: Any, store: S3Store) -> None:
    lose_one_answer(client)
    lease = Lease.acquire(store, "lost/lease", holder=current_holder())
    lose_one_answer(client)
    lease.renew()
    lease.check()
    lose_one_answer(client)
    lease.release()


@pytest.mark.parametrize("budgets", [[2_000], [100_000, 50_000], [900, 900], [5_000, 5_000, 5_000]])
def test_an_interrupted_body_goes_on_where_it_broke(
    connect: Callable[..., Any], endpoint: str, store: S3Store, tmp_path: Path, budgets: list[int]
) -> None:
    store.put("body", BODY)
    for read in (
        lambda broken: broken.get("body").body,
        lambda broken: broken.get_range("body", start_bytes=7, length_bytes=len(BODY)),
        lambda broken: (
            broken.download_file("body", tmp_path / "f"),
            (tmp_path / "f").read_bytes(),
        )[1],
    ):
        with CuttingProxy((urlsplit(endpoint).hostname, urlsplit(endpoint).port), budgets) as proxy:
            broken = S3Store("bucket", prefix="prefix", client=connect(proxy.endpoint))
            assert read(broken) in (BODY, BODY[7:])
            assert proxy.connections == len(budgets) + 1


def test_a_body_that_always_breaks_is_unavailable_and_leaves_no_file(
    connect: Callable[..., Any], endpoint: str, store: S3Store, tmp_path: Path
) -> None:
    store.put("body", BODY)
    with CuttingProxy(
        (urlsplit(endpoint).hostname, urlsplit(endpoint).port), [5_000] * 99
    ) as proxy:
        broken = S3Store("bucket", prefix="prefix", client=connect(proxy.endpoint))
        with pytest.raises(StoreUnavailableError, match="broke 4 times"):
            broken.download_file("body", tmp_path / "file")
    assert not (tmp_path / "file").exists()


def test_a_body_replaced_while_it_is_read_is_not_mixed(
    connect: Callable[..., Any], endpoint: str, store: S3Store
) -> None:
    store.put("body", BODY)
    where = (urlsplit(endpoint).hostname, urlsplit(endpoint).port)
    with CuttingProxy(where, [100_000]) as proxy:
        client = connect(proxy.endpoint)
        broken = S3Store("bucket", prefix="prefix", client=client)
        gets: list[int] = []

        def replace(**_: object) -> None:
            gets.append(1)
            if len(gets) == 2:
                store.put("body", BODY[::-1])

        client.meta.events.register("before-send.s3.GetObject", replace)
        with pytest.raises(PreconditionFailedError):
            broken.get("body")
