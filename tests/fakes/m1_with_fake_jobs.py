"""The `m1` command whose jobs are `fake_worker`: `python m1_with_fake_jobs.py run ...`.

`M1_FAKE_MODULE` names another worker.
"""

import os
import sys

from m1.flows import cli
from m1.flows.prepare import SURROUNDINGS, Surroundings

if __name__ == "__main__":
    SURROUNDINGS.set(Surroundings(module=os.environ.get("M1_FAKE_MODULE", "fake_worker")))
    sys.exit(cli.main())
