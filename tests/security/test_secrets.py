"""Canaries go through a whole run: none comes out in anything that is kept or shown."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
FAKES = ROOT / "tests" / "fakes"
COMMAND = [sys.executable, str(FAKES / "m1_with_fake_jobs.py")]
RUN = ["run", "--preset", "toy", "--run", "r1", "--set", "run.order=[curate, pretrain]"]

#: Where each one is planted, and its value.
CANARIES = {
    "AWS_SECRET_ACCESS_KEY": "canary-of-the-secret-key",
    "AWS_SESSION_TOKEN": "canary/of+the=session",
    "M1_SERVICE_PASSWORD": "canary-of-a-password",
}
IN_AN_ADDRESS = "canary-in-an-address"


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    return {
        **os.environ,
        **CANARIES,
        "AWS_ACCESS_KEY_ID": "AKIA" + "CANARYCANARY1234",
        "M1_CANARY_ADDRESS": f"https://someone:{IN_AN_ADDRESS}@internal.example/path",
        "M1_HOME": str(tmp_path / "home"),
        "M1_STORE": str(tmp_path / "store"),
        "PYTHONPATH": os.pathsep.join([str(FAKES), *os.environ.get("PYTHONPATH", "").split()]),
        "OMP_NUM_THREADS": "1",
        "M1_FAKE_MODULE": "leaky_worker",
        "M1_FAKE": json.dumps({"pretrain": {"endings": ["crash", "bad-input"]}}),
    }


def m1(environment: dict[str, str], *words: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([*COMMAND, *words], env=environment, capture_output=True, check=False)


def escaped(kept: dict[str, bytes]) -> list[str]:
    """Which canary was found where."""
    secrets = [*CANARIES.values(), IN_AN_ADDRESS, "CANARYCANARY1234"]
    return [
        f"{secret} in {name}"
        for name, body in kept.items()
        for secret in secrets
        if secret.encode() in body
    ]


@pytest.mark.fault(38, ending="contained")
def test_no_canary_comes_out_of_a_whole_run(environment: dict[str, str], tmp_path: Path) -> None:
    done = m1(environment, *RUN)
    shown = {"run": done.stdout + done.stderr}
    for words in (["status", "r1", "--json"], ["logs", "r1", "pretrain"], ["logs", "r1", "curate"]):
        answer = m1(environment, *words)
        shown[" ".join(words)] = answer.stdout + answer.stderr
    m1(environment, "report", "r1", "-o", str(tmp_path / "report.html"))
    files = {
        str(path.relative_to(tmp_path)): path.read_bytes()
        for path in tmp_path.rglob("*")
        if path.is_file()
    }

    assert done.returncode == 3, done.stderr.decode()
    assert escaped(shown | files) == []
    assert b"is ***" in shown["logs r1 pretrain"]  # the job did print them
    assert b"***@internal.example" in shown["logs r1 pretrain"]
    assert "report.html" in files
    assert any(name.endswith("prefect.db") for name in files)
    assert any(name.endswith("commit.json") for name in files)


@pytest.mark.fault(38, ending="refused")
@pytest.mark.parametrize(
    "store", [f"s3://key:{IN_AN_ADDRESS}@bucket/prefix", f"ftp://key:{IN_AN_ADDRESS}@host/x"]
)
def test_credentials_in_a_store_url_are_refused_and_not_repeated(
    environment: dict[str, str], tmp_path: Path, store: str
) -> None:
    done = m1(environment, *RUN, "--store", store)

    assert done.returncode == 2
    kept = {str(path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert escaped(kept | {"shown": done.stdout + done.stderr}) == []
