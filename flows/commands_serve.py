"""`m1 serve`: hands over to the server process. No torch here."""

import argparse
import json
import os
import sys

from m1.flows.commands_look import weights_stage
from m1.flows.commands_run import store_of
from m1.flows.run_record import load_record
from m1.infra.errors import InvalidSettingError
from m1.infra.names import parse_run_id

_LARGEST_BATCH = 65_536
_LARGEST_PORT = 65_535


def do_serve(arguments: argparse.Namespace) -> int:
    """Become the server: signals and output are then its own. Returns only by an error."""
    store = store_of(arguments)
    record = load_record(store, parse_run_id(arguments.run))
    request = {
        "store": store.url,
        "run": record.run,
        "stage": weights_stage(store, record, arguments.stage),
        "host": arguments.host,
        "port": _within("--port", arguments.port, 0, _LARGEST_PORT),
        "max_batch": _within("--max-batch", arguments.max_batch, 1, _LARGEST_BATCH),
        "max_requests": 16 * arguments.max_batch,  # ours: what waits beyond is told to come back
        "allow_hosts": arguments.allow_host,
    }
    os.execv(  # noqa: S606  (our own interpreter and module)
        sys.executable, [sys.executable, "-m", "m1.stages.serve", json.dumps(request)]
    )


def _within(field: str, value: int, low: int, high: int) -> int:
    if not low <= value <= high:
        raise InvalidSettingError(field=field, value=value, accepted=f"{low} to {high}")
    return value
