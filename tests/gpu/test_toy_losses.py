"""Training on a GPU is training on the CPU: kernels, grouped experts, chunked head and all."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

SCRIPT = Path(__file__).with_name("toy_losses.py")
# ours; on other data an H200 agreed to four decimals in fp32 and within 1.3e-3 in bf16
TOLERANCE = {"fp32": 1e-3, "bf16": 1e-2}


def losses(precision: str, **environment: str) -> list[float]:
    finished = subprocess.run(
        [sys.executable, str(SCRIPT), precision],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return list(json.loads(finished.stdout.splitlines()[-1]))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_toy_model_learns_on_a_gpu_as_on_the_cpu(precision: str) -> None:
    on_gpu = losses(precision)
    on_cpu = losses(precision, CUDA_VISIBLE_DEVICES="")
    assert on_gpu[-1] < on_gpu[0] - 1.0
    assert on_gpu == pytest.approx(on_cpu, abs=TOLERANCE[precision])
