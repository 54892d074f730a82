"""Amazon S3 and what speaks its protocol, through boto3. Creates no buckets."""

import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from m1.infra.errors import (
    CorruptObjectError,
    NotFoundError,
    PreconditionFailedError,
    StoreAccessError,
    StoreUnavailableError,
)
from m1.infra.names import validate_key
from m1.infra.store.protocol import ObjectSummary, StoredObject

_Read = TypeVar("_Read")

_CHUNK_BYTES = 1 << 20
_BODY_TRIES = 4
_NOT_FOUND = {"NoSuchKey", "NotFound", "404"}
_LOST = {"PreconditionFailed", "412"}
_CONFLICT = {"ConditionalRequestConflict", "409"}
_CONFLICT_TRIES = 4  # ours
_CONFLICT_SECONDS = 0.1  # ours
_REFUSED = {
    "AccessDenied", "403", "Forbidden", "InvalidAccessKeyId", "SignatureDoesNotMatch",
    "ExpiredToken", "NoSuchBucket", "InvalidToken",
}  # fmt: skip


class _ConflictError(PreconditionFailedError):
    """Another conditional write was under way: neither lost nor won."""


def make_client(endpoint: str | None) -> Any:
    """A client with bounded attempts and timeouts; credentials come from boto3's own chain."""
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError

    config = Config(
        connect_timeout=5,
        read_timeout=30,
        retries={"total_max_attempts": 4, "mode": "standard"},
        max_pool_connections=32,
        s3={"addressing_style": "path"} if endpoint else {},
    )
    try:
        # a session of its own: boto3's default one keeps the first credentials it ever saw
        session = boto3.session.Session()
        region = session.region_name or "us-east-1"
        return session.client("s3", endpoint_url=endpoint, region_name=region, config=config)
    except (BotoCoreError, ValueError) as error:  # half a key pair, no such profile, bad URL
        raise StoreAccessError(f"no S3 client can be made: {error}") from error


class S3Store:
    """Objects of one bucket below one prefix."""

    def __init__(self, bucket: str, *, prefix: str, client: Any) -> None:
        self._bucket = bucket
        self._prefix = f"{validate_key(prefix)}/" if prefix else ""
        self._client = client

    @property
    def url(self) -> str:
        """`s3://bucket/prefix`."""
        return f"s3://{self._bucket}/{self._prefix}".rstrip("/")

    def get(self, key: str) -> StoredObject:
        """Read an object whole, resuming an interrupted body; CorruptObjectError if damaged."""
        return self._reread(key, lambda: self._whole(key))

    def _whole(self, key: str) -> StoredObject:
        chunks: list[bytes] = []
        etag = ""
        for chunk, version in self._stream(key):
            chunks.append(chunk)
            etag = version
        return StoredObject(body=b"".join(chunks), etag=etag)

    def get_range(self, key: str, *, start_bytes: int, length_bytes: int) -> bytes:
        """Read part of an object, resuming an interrupted body."""
        if length_bytes <= 0:
            return b""
        end_bytes = start_bytes + length_bytes
        return b"".join(chunk for chunk, _ in self._stream(key, start_bytes, end_bytes))

    def put(self, key: str, body: bytes) -> str:
        """Write, replacing."""
        return self._put(key, body)

    def put_if_absent(self, key: str, body: bytes) -> str:
        """Create; our own body found there means the answer to an earlier try was lost."""
        return self._put_conditional(key, body, IfNoneMatch="*")

    def put_if_match(self, key: str, body: bytes, *, etag: str) -> str:
        """Replace one version."""
        return self._put_conditional(key, body, IfMatch=etag)

    def list(self, prefix: str) -> Iterator[ObjectSummary]:
        """All objects under `prefix`, all pages."""
        with self._translated("ListObjectsV2", prefix):
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self._bucket, Prefix=self._prefix + prefix
            )
            for page in pages:
                if "IsTruncated" not in page:  # some proxy's page, which reads as an empty list
                    raise StoreUnavailableError(f"ListObjectsV2 in {self.url}: not an S3 answer")
                for item in page.get("Contents", ()):
                    yield ObjectSummary(
                        key=item["Key"][len(self._prefix) :],
                        size_bytes=item["Size"],
                        etag=item["ETag"],
                        modified_at=item["LastModified"].timestamp(),
                    )

    def delete(self, key: str) -> None:
        """Remove; no error if absent."""
        with self._translated("DeleteObject", key):
            self._client.delete_object(Bucket=self._bucket, Key=self._full(key))

    def upload_file(self, path: Path, key: str) -> None:
        """Stream a file; multipart when large."""
        from boto3.exceptions import S3UploadFailedError
        from boto3.s3.transfer import TransferConfig

        config = TransferConfig(multipart_chunksize=16 << 20, max_concurrency=4)
        with self._translated("PutObject", key):
            try:
                self._client.upload_file(str(path), self._bucket, self._full(key), Config=config)
            except S3UploadFailedError as error:
                cause = error.__cause__ or error.__context__ or error
                raise cause from error

    def download_file(self, key: str, path: Path) -> None:
        """Stream an object to `path.part`, then rename."""
        part = path.with_name(path.name + ".part")
        path.parent.mkdir(parents=True, exist_ok=True)
        self._reread(key, lambda: self._write_to(part, key))
        part.replace(path)

    def _write_to(self, path: Path, key: str) -> None:
        with path.open("wb") as target:
            for chunk, _ in self._stream(key):
                target.write(chunk)

    def _reread(self, key: str, read: Callable[[], _Read]) -> _Read:
        """`read`, once more if the body did not match the checksum that the store keeps."""
        from botocore.exceptions import FlexibleChecksumError

        try:
            return read()
        except FlexibleChecksumError:
            try:
                return read()
            except FlexibleChecksumError as error:
                message = f"GetObject {key} from {self.url}: wrong checksum, twice"
                raise CorruptObjectError(message) from error

    def probe(self) -> None:
        """Write, read and delete a tiny object."""
        key = f"probe-{uuid.uuid4().hex}"
        self.put(key, b"probe")
        self.get(key)
        self.delete(key)

    def _full(self, key: str) -> str:
        return self._prefix + validate_key(key)

    def _put(self, key: str, body: bytes, **condition: str) -> str:
        with self._translated("PutObject", key):
            answer = self._client.put_object(
                Bucket=self._bucket, Key=self._full(key), Body=body, **condition
            )
        return str(answer["ETag"])

    def _put_conditional(self, key: str, body: bytes, **condition: str) -> str:
        try:
            return self._put_undisputed(key, body, **condition)
        except (PreconditionFailedError, NotFoundError) as error:
            try:
                current = self.get(key)
            except NotFoundError:
                current = None
            if current is not None and current.body == body:
                return current.etag
            raise PreconditionFailedError(f"{key} in {self.url} was written by another") from error

    def _put_undisputed(self, key: str, body: bytes, **condition: str) -> str:
        """Try again while S3 answers 409: another write was under way, perhaps to no effect."""
        for _ in range(_CONFLICT_TRIES - 1):
            try:
                return self._put(key, body, **condition)
            except _ConflictError:
                time.sleep(_CONFLICT_SECONDS)
        return self._put(key, body, **condition)

    def _stream(
        self, key: str, start_bytes: int = 0, end_bytes: int | None = None
    ) -> Iterator[tuple[bytes, str]]:
        """Yield (chunk, etag); after a break go on where it broke, pinned to the same version."""
        from botocore.exceptions import HTTPClientError, IncompleteReadError

        offset, etag = start_bytes, ""
        for remaining in reversed(range(_BODY_TRIES)):
            try:
                answer = self._open(key, offset, end_bytes, etag)
                if answer is None:
                    return
                etag = answer["ETag"]
                yield b"", etag
                for chunk in answer["Body"].iter_chunks(_CHUNK_BYTES):
                    yield chunk, etag
                    offset += len(chunk)
            except (HTTPClientError, IncompleteReadError) as error:
                if remaining == 0:
                    message = f"GetObject {key} from {self.url} broke {_BODY_TRIES} times"
                    raise StoreUnavailableError(message) from error
            else:
                return

    def _open(self, key: str, offset: int, end_bytes: int | None, etag: str) -> Any:
        last = "" if end_bytes is None else str(end_bytes - 1)
        extra = {"Range": f"bytes={offset}-{last}"} if offset or end_bytes is not None else {}
        extra |= {"IfMatch": etag} if etag else {}
        from botocore.exceptions import ClientError

        with self._translated("GetObject", key):
            try:
                return self._client.get_object(Bucket=self._bucket, Key=self._full(key), **extra)
            except ClientError as error:
                if error.response["Error"]["Code"] in ("InvalidRange", "416"):
                    return None  # nothing at or after the offset
                raise

    @contextmanager
    def _translated(self, action: str, key: str) -> Iterator[None]:
        from botocore.exceptions import (
            BotoCoreError,
            ClientError,
            CredentialRetrievalError,
            NoCredentialsError,
        )
        from botocore.parsers import ResponseParserError

        try:
            yield
        except ClientError as error:
            raise self._from_answer(action, key, error.response) from error
        except (NoCredentialsError, CredentialRetrievalError) as error:
            raise StoreAccessError(f"{action} in {self.url}: no credentials found") from error
        except (BotoCoreError, ResponseParserError) as error:
            name = type(error).__name__
            raise StoreUnavailableError(f"{action} in {self.url}: {name}") from error

    def _from_answer(self, action: str, key: str, response: Any) -> Exception:
        code = str(response["Error"]["Code"])
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        if code in _NOT_FOUND:
            return NotFoundError(f"{self.url}: no object {key}")
        if code in _CONFLICT:
            return _ConflictError(f"{action} {key} in {self.url}: {code}")
        if code in _LOST or status == 412:
            return PreconditionFailedError(f"{action} {key} in {self.url}: {code}")
        if code in _REFUSED or status == 403:
            return StoreAccessError(f"{action} refused by bucket {self._bucket!r}: {code}")
        return StoreUnavailableError(f"{action} {key} in {self.url}: {code}")
