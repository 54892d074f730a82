"""The tensor-parallel forms of the gated norm and of the head, on two gloo ranks."""

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

SCRIPT = Path(__file__).with_name("two_ranks.py")


def test_two_ranks_compute_what_one_does(tmp_path: Path) -> None:
    ranks = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(rank), str(tmp_path / "meeting")],
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for process in ranks:
        _output, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors[-2000:]
