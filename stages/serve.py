"""Serves a committed stage to OpenAI clients until it is told to stop.

    python -m m1.stages.serve '{"store": ..., "run": ..., "stage": ..., "host": ..., "port": ...}'

Prints where it listens, and the bearer key unless M1_SERVE_KEY gave it. The key is written
nowhere else.
"""

import json
import os
import secrets
import socket
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import uvicorn

from m1.infra.errors import InvalidSettingError, M1Error
from m1.infra.store.open_store import open_store
from m1.stages.generate import load_committed
from m1.stages.serve_api import Served, build_app
from m1.stages.serve_engine import DecodingThread

KEY_VARIABLE = "M1_SERVE_KEY"
SHORTEST_KEY_CHARACTERS = 16
MOST_CONNECTIONS = 512  # ours; uvicorn answers 503 beyond
LOOPBACK_NAMES = ("127.0.0.1", "localhost")


def serving_key(environ: Mapping[str, str]) -> tuple[str, bool]:
    """The bearer key, and whether it was drawn here.

    Raises:
        InvalidSettingError: the given one is too short to be a secret.
    """
    given = environ.get(KEY_VARIABLE)
    if not given:
        return secrets.token_urlsafe(24), True
    if len(given) < SHORTEST_KEY_CHARACTERS or not given.isascii() or not given.isprintable():
        raise InvalidSettingError(
            field=KEY_VARIABLE,
            value=f"{len(given)} characters",
            accepted=f"at least {SHORTEST_KEY_CHARACTERS} printable ASCII characters",
        )
    return given, False


def listen(host: str, port: int) -> socket.socket:
    """A socket of this machine; port 0 takes any free one.

    Raises:
        InvalidSettingError: the address is not ours or in use.
    """
    try:
        return socket.create_server((host, port))
    except OSError as error:
        raise InvalidSettingError(
            field="--host, --port", value=f"{host}:{port}", accepted=f"free ones ({error.strerror})"
        ) from error


def serve(request: Mapping[str, Any], scratch: Path) -> None:
    """Load, listen, and answer until a signal ends it."""
    key, is_drawn = serving_key(os.environ)
    host = str(request["host"])
    with listen(host, int(request["port"])) as listening:
        loaded = load_committed(
            open_store(request["store"]), request["run"], request["stage"], scratch
        )
        decoder = loaded.decoder()
        thread = DecodingThread(
            decoder.engine(max_batch=int(request["max_batch"])),
            most_requests=int(request["max_requests"]),
        )
        served = Served(
            name=f"{request['run']}/{request['stage']}",
            decoder=decoder,
            tokenizer=loaded.tokenizer,
            thread=thread,
            window_tokens=loaded.window_tokens,
            created=int(time.time()),
        )
        hosts = {*LOOPBACK_NAMES, host, *request.get("allow_hosts", ())}
        app = build_app(served, key=key, hosts=sorted(hosts))
        sys.stdout.write(
            f"serving {served.name} at http://{host}:{listening.getsockname()[1]}/v1\n"
        )
        sys.stdout.write(f"key: {key}\n" if is_drawn else f"key: the one in {KEY_VARIABLE}\n")
        sys.stdout.flush()
        config = uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            limit_concurrency=MOST_CONNECTIONS,
            ws="none",
        )
        uvicorn.Server(config).run(sockets=[listening])


def main() -> int:
    """Serve what the argument says."""
    try:
        with tempfile.TemporaryDirectory() as scratch:
            serve(json.loads(sys.argv[1]), Path(scratch))
    except M1Error as error:
        sys.stderr.write(f"m1: {error}\n")
        return error.exit_code
    except KeyboardInterrupt:  # uvicorn ends in order, then raises the signal again
        return 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
