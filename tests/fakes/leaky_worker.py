"""A stage job that prints every secret it can reach, in every way that jobs print things."""

import logging
import os
import subprocess
import sys
import traceback
from pathlib import Path

import fake_worker


def leak() -> None:
    """Output of the job, of a process below it, of a logger and of an exception."""
    for name, value in sorted(os.environ.items()):
        if "CANARY" in value.upper():
            sys.stdout.write(f"{name} is {value}\n")
    address = os.environ["M1_CANARY_ADDRESS"]
    subprocess.run([sys.executable, "-c", f"print('connecting to', {address!r})"], check=True)
    logging.getLogger("leaky").warning("could not reach %s", address)
    traceback.print_exception(
        ConnectionError(f"{address} with {os.environ['AWS_SECRET_ACCESS_KEY']}")
    )
    sys.stdout.flush()


if __name__ == "__main__":
    if os.environ.get("RANK", "0") == "0":
        leak()
    sys.exit(fake_worker.main(Path(sys.argv[1])))
