"""A stage job in a process of its own: the chain of digests of the simulation, in real time."""

import os
import sys
import time
from pathlib import Path
from random import Random

from m1.infra.errors import M1Error
from m1.infra.store.open_store import open_store
from m1.stages import worker
from m1.stages.context import StageContext
from m1.stages.contract import StageSpec
from tests.faults.simulation.jobs import work

STEP_SECONDS = 0.05


def main(spec_path: Path) -> int:
    """Exit codes as those of the real worker."""
    spec = StageSpec.from_bytes(spec_path.read_bytes())
    scratch = spec_path.parent / "scratch"
    context = StageContext(spec, open_store(spec.store_url), scratch=scratch, rank=0)
    context.stop.install()
    behaviour = os.environ.get("M1_CHAIN", "good") if spec.stage != "curate" else "good"
    try:
        return work(
            context, behaviour=behaviour, random=Random(spec.fence), sleep=time.sleep,
            step_seconds=STEP_SECONDS,
        )  # fmt: skip
    except M1Error as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        return worker._exit_code(error)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
