"""The `m1` command whose jobs are `fake_worker`: `python m1_with_fake_jobs.py run ...`.

`M1_FAKE_DIRECT=1` leaves torchrun out (3 s per job); everything else is the real thing.
"""

import os
import sys

from m1.flows import cli
from m1.flows.prepare import SURROUNDINGS, Surroundings
from m1.infra.launch import local


def direct(request):
    return [sys.executable, "-m", request.module, *request.arguments]


if __name__ == "__main__":
    if os.environ.get("M1_FAKE_DIRECT"):
        local._torchrun = direct
    SURROUNDINGS.set(Surroundings(module="fake_worker"))
    sys.exit(cli.main())
