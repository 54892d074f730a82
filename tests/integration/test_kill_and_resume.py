"""A job killed in the middle goes on, and ends with the same bits as an undisturbed one."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from tests.integration import tiny

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

LONGER = {
    "pretrain.steps": 40,
    "reinforce-40k.steps": 12,
    "run.order": "curate,pretrain,sft,reinforce-40k",
}
PATIENCE_SECONDS = 240


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.corpus(tmp_path_factory.mktemp("corpus") / "documents")


def weights(home: Path, run: str) -> dict[str, str]:
    """Digest of the weights that each stage committed."""
    status = json.loads(tiny.Place(home=home).m1("status", run, "--json").stdout)
    return {
        stage["name"]: stage["metrics"]["weights_sha256"]
        for stage in status["stages"]
        if "weights_sha256" in (stage["metrics"] or {})
    }


def step_of(home: Path, run: str, stage: str) -> int:
    path = home / "m1" / "store" / "runs" / run / stage / "progress.json"
    try:
        progress = json.loads(path.read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return -1
    return int(progress["step"]) if progress["phase"] in ("training", "saving") else -1


def wait_for_step(home: Path, run: str, stage: str, step: int) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while step_of(home, run, stage) < step:
        assert time.monotonic() < deadline, f"{stage} never reached step {step}"
        time.sleep(0.05)


def job_processes(flow: int) -> list[psutil.Process]:
    """The processes of the stage job below the flow."""
    return [
        child
        for child in psutil.Process(flow).children(recursive=True)
        if "m1.infra.launch" in " ".join(child.cmdline())
    ]


@pytest.fixture(scope="module")
def undisturbed(
    tmp_path_factory: pytest.TempPathFactory, documents: Path
) -> tuple[Path, dict[str, str]]:
    home = tmp_path_factory.mktemp("undisturbed")
    tiny.Place(home=home).m1("run", "--run", "calm", *tiny.settings(documents, **LONGER))
    return home, weights(home, "calm")


@pytest.mark.parametrize("victim", ["job", "flow", "flow-and-job"])
def test_after_sigkill_the_weights_are_bit_identical(
    victim: str, undisturbed: tuple[Path, dict[str, str]], documents: Path, tmp_path: Path
) -> None:
    words = ["run", "--run", "calm", *tiny.settings(documents, **LONGER)]
    flow = subprocess.Popen(
        tiny.command(*words), env=tiny.Place(home=tmp_path).environment(), stdout=subprocess.DEVNULL
    )

    for stage, step in (("pretrain", 9), ("reinforce-40k", 3)):
        wait_for_step(tmp_path, "calm", stage, step)
        killed = job_processes(flow.pid) if "job" in victim else []
        for process in killed:
            process.send_signal(signal.SIGKILL)
        if "flow" in victim:
            os.kill(flow.pid, signal.SIGKILL)
            flow.wait()
            flow = subprocess.Popen(
                tiny.command("resume", "calm"),
                env=tiny.Place(home=tmp_path).environment(),
                stdout=subprocess.DEVNULL,
            )

    assert flow.wait(timeout=PATIENCE_SECONDS) == 0
    assert weights(tmp_path, "calm") == undisturbed[1]
    assert set(undisturbed[1]) == {"pretrain", "sft", "reinforce-40k"}


def test_ctrl_c_saves_and_resume_goes_on(
    undisturbed: tuple[Path, dict[str, str]], documents: Path, tmp_path: Path
) -> None:
    words = ["run", "--run", "calm", "--until", "pretrain", *tiny.settings(documents, **LONGER)]
    flow = subprocess.Popen(
        tiny.command(*words), env=tiny.Place(home=tmp_path).environment(), stdout=subprocess.DEVNULL
    )
    wait_for_step(tmp_path, "calm", "pretrain", 5)

    flow.send_signal(signal.SIGINT)

    assert flow.wait(timeout=60) == 130
    tiny.Place(home=tmp_path).m1(*words)
    assert weights(tmp_path, "calm")["pretrain"] == undisturbed[1]["pretrain"]
