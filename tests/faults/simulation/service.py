"""An S3 service in memory, and the client of it that `S3Store` uses. Strongly consistent, as S3 is.

A call may be refused, reach the service late, or lose its answer after it took effect. The client
tries again as boto3 does: refusals and lost answers, but never a 4xx.
"""

import hashlib
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from botocore.exceptions import ClientError, ConnectTimeoutError, ReadTimeoutError

from tests.faults.simulation.world import EPOCH_SECONDS, Process, World

TRIES = 4  # as make_client sets it
URL = "https://simulated"


@dataclass(frozen=True, slots=True)
class Held:
    """One stored object."""

    body: bytes
    etag: str
    modified_at: float


@dataclass(kw_only=True)
class Weather:
    """How likely each fault of a call is, and when nothing gets through at all."""

    refused: float = 0.0
    lost: float = 0.0
    late: float = 0.0
    conflict: float = 0.0
    outages: list[tuple[float, float]] = field(default_factory=list)
    slow: float = 0.05

    def clear(self) -> None:
        """From now on nothing goes wrong."""
        self.refused = self.lost = self.late = self.conflict = 0.0
        self.outages = []


class Service:
    """The objects, and who is told about each change: `watch(process, key, old, new)`."""

    honours_if_none_match = True  # a mutation of the tests turns one off
    honours_if_match = True

    def __init__(self, world: World) -> None:
        self.objects: dict[str, Held] = {}
        self.watch: Callable[[Process | None, str, Held | None, Held | None], None]
        self.watch = lambda _process, _key, _old, _new: None
        self._world = world
        self._versions = itertools.count(1)

    def get(self, key: str, if_match: str | None, byte_range: str | None) -> dict[str, Any]:
        """Answer of GetObject."""
        held = self.objects.get(key)
        if held is None:
            raise _answer("NoSuchKey", 404)
        if if_match is not None and held.etag != if_match:
            raise _answer("PreconditionFailed", 412)
        body = held.body
        if byte_range is not None:
            first, _, last = byte_range.removeprefix("bytes=").partition("-")
            if int(first) >= len(body):
                raise _answer("InvalidRange", 416)
            body = body[int(first) : int(last) + 1 if last else None]
        return {"ETag": held.etag, "Body": _Body(body)}

    def put(
        self, process: Process | None, key: str, body: bytes, condition: dict[str, str]
    ) -> dict[str, Any]:
        """Answer of PutObject."""
        old = self.objects.get(key)
        if "IfNoneMatch" in condition and old is not None and self.honours_if_none_match:
            raise _answer("PreconditionFailed", 412)
        if "IfMatch" in condition and self.honours_if_match:
            if old is None:
                raise _answer("NoSuchKey", 404)
            if old.etag != condition["IfMatch"]:
                raise _answer("PreconditionFailed", 412)
        etag = f'"{next(self._versions)}-{hashlib.md5(body).hexdigest()}"'  # noqa: S324 - as S3
        new = Held(body, etag, EPOCH_SECONDS + self._world.now)
        self.objects[key] = new
        self._world.record("put", key, etag)
        self.watch(process, key, old, new)
        return {"ETag": etag}

    def delete(self, process: Process | None, key: str) -> dict[str, Any]:
        """Answer of DeleteObject."""
        old = self.objects.pop(key, None)
        if old is not None:
            self._world.record("delete", key)
            self.watch(process, key, old, None)
        return {}

    def list(self, prefix: str) -> list[dict[str, Any]]:
        """Contents of ListObjectsV2."""
        return [
            {
                "Key": key,
                "Size": len(held.body),
                "ETag": held.etag,
                "LastModified": datetime.fromtimestamp(held.modified_at, UTC),
            }
            for key, held in sorted(self.objects.items())
            if key.startswith(prefix)
        ]


class Client:
    """The part of a boto3 client that `S3Store` calls."""

    def __init__(self, world: World, service: Service, weather: Weather) -> None:
        self._world = world
        self._service = service
        self._weather = weather

    def get_object(
        self, *, Bucket: str, Key: str, IfMatch: str | None = None, Range: str | None = None
    ) -> dict[str, Any]:
        return self._call(lambda: self._service.get(Key, IfMatch, Range), f"get {_short(Key)}")

    def put_object(self, *, Bucket: str, Key: str, Body: bytes, **condition: str) -> dict[str, Any]:
        process = self._process()
        return self._call(
            lambda: self._service.put(process, Key, Body, condition),
            f"put {_short(Key)}",
            conditional=bool(condition),
        )

    def delete_object(self, *, Bucket: str, Key: str) -> dict[str, Any]:
        process = self._process()
        return self._call(lambda: self._service.delete(process, Key), "delete")

    def upload_file(self, path: str, bucket: str, key: str, *, Config: object) -> None:
        self.put_object(Bucket=bucket, Key=key, Body=Path(path).read_bytes())

    def get_paginator(self, _name: str) -> "Pages":
        return Pages(lambda prefix: self._call(lambda: self._service.list(prefix), "list"))

    def _call(self, effect: Callable[[], Any], name: str, *, conditional: bool = False) -> Any:
        """Two waits, one on each side of the effect: death and rivals may come in either."""
        world = self._world
        writes = name.startswith(("put", "delete"))
        for attempt in range(TRIES):
            if attempt:
                world.sleep(2.0**attempt * world.random.random())
            world.call_point(f"before {name}")
            fate = self._fate(writes=writes, conditional=conditional)
            world.sleep(self._latency())
            if fate == "refused":
                continue
            if fate == "conflict":
                raise _answer("ConditionalRequestConflict", 409)
            if fate == "late":
                self._deliver_later(effect)
                world.sleep(10.0)
                continue
            answer, error = _outcome(effect)
            world.call_point(f"after {name}")
            world.sleep(self._latency())
            if fate == "lost":
                continue
            if error is not None:
                raise error
            return answer
        kind = ReadTimeoutError if writes else ConnectTimeoutError
        raise kind(endpoint_url=URL)

    def _fate(self, *, writes: bool, conditional: bool) -> str:
        weather, draw = self._weather, self._world.random.random()
        if any(start <= self._world.now < end for start, end in weather.outages):
            return "refused"
        for name, rate, possible in (
            ("refused", weather.refused, True),
            ("lost", weather.lost, True),
            ("late", weather.late, writes),
            ("conflict", weather.conflict, conditional),
        ):
            if possible and draw < rate:
                return name
            draw -= rate if possible else 0.0
        return "well"

    def _latency(self) -> float:
        random = self._world.random
        if random.random() < self._weather.slow:
            return random.uniform(1.0, 8.0)
        return random.uniform(0.01, 0.2)

    def _deliver_later(self, effect: Callable[[], Any]) -> None:
        """The request is on its way when the client gives up; its process may die meanwhile."""
        world = self._world
        network = world.process(self._process().machine, "network")

        def arrive() -> None:
            world.sleep(world.random.uniform(1.0, 90.0))
            _outcome(effect)

        world.spawn(network, arrive)

    def _process(self) -> Process:
        assert self._world.current is not None
        return self._world.current.process


def _short(key: str) -> str:
    """What kind of object it is: the end of its key."""
    return key.rpartition("/")[2]


def _outcome(effect: Callable[[], Any]) -> tuple[Any, ClientError | None]:
    try:
        return effect(), None
    except ClientError as error:
        return None, error


def _answer(code: str, status: int) -> ClientError:
    metadata = {"HTTPStatusCode": status}
    return ClientError({"Error": {"Code": code}, "ResponseMetadata": metadata}, "simulated")


class _Body:
    def __init__(self, body: bytes) -> None:
        self._body = body

    def iter_chunks(self, _size: int) -> Iterator[bytes]:
        yield self._body


class Pages:
    def __init__(self, read: Callable[[str], list[dict[str, Any]]]) -> None:
        self._read = read

    def paginate(self, *, Bucket: str, Prefix: str) -> Iterator[dict[str, Any]]:
        yield {"Contents": self._read(Prefix), "IsTruncated": False}
