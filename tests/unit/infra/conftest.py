"""An S3 server in this process, and clients with short patience."""

from collections.abc import Callable, Iterator
from typing import Any

import boto3
import pytest
from botocore.config import Config
from moto.server import ThreadedMotoServer

from m1.infra.store.s3 import S3Store


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def connect() -> Iterator[Callable[..., Any]]:
    clients: list[Any] = []

    def build(url: str, **settings: object) -> Any:
        retries = {"total_max_attempts": 3, "mode": "standard"}
        config = {"retries": retries, "connect_timeout": 1, "read_timeout": 5, **settings}
        client = boto3.client(
            "s3",
            endpoint_url=url,
            region_name="us-east-1",
            aws_access_key_id="test",
            aws_secret_access_key="test",  # noqa: S106 - moto takes any
            config=Config(**config),
        )
        clients.append(client)
        return client

    yield build
    for client in clients:
        client.close()


@pytest.fixture
def client(connect: Callable[..., Any], endpoint: str) -> Any:
    client = connect(endpoint)
    client.create_bucket(Bucket="bucket")
    return client


@pytest.fixture
def store(client: Any) -> S3Store:
    return S3Store("bucket", prefix="prefix", client=client)
