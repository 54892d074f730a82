"""`m1 up` and `m1 down`: server, worker, pool and deployments on loopback, and their end.

`dashboard.json` in the data folder names what was started, by process id and start time, so that
`down` ends exactly those processes and nothing that happens to have taken their number.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

from m1.flows.prefect_session import (
    BOOT_SECONDS,
    DASHBOARD_FILE,
    STOP_SECONDS,
    configure,
    dashboard_url,
    is_healthy,
    server_command,
    server_environment,
)
from m1.flows.screen import say
from m1.infra.errors import EXIT_OK, InvalidSettingError, UsageError
from m1.infra.lease import process_start
from m1.infra.settings import Environment, load_environment

POOL = "local"
DEPLOYMENTS = Path(__file__).parents[1] / "prefect.yaml"  # of the checkout
_MIN_PORT, _MAX_PORT = 1024, 65535


def do_up(arguments: argparse.Namespace) -> int:
    """Start everything, or say that it runs already."""
    environment = load_environment(os.environ)
    url = dashboard_url(environment)
    if url is not None:
        say(f"already up: {url.removesuffix('/api')}")
        return EXIT_OK
    if not _MIN_PORT <= arguments.port <= _MAX_PORT:
        raise InvalidSettingError(
            field="--port", value=arguments.port, accepted=f"{_MIN_PORT} to {_MAX_PORT}"
        )
    if not DEPLOYMENTS.exists():
        raise UsageError(f"{DEPLOYMENTS.name} is not beside the code; start from a checkout")
    if arguments.store:
        os.environ["M1_STORE"] = arguments.store
    _start(environment, arguments.port)
    say(f"dashboard: http://127.0.0.1:{arguments.port}   (stop it with: m1 down)")
    return EXIT_OK


def do_down(arguments: argparse.Namespace) -> int:
    """End what `m1 up` started."""
    del arguments
    path = load_environment(os.environ).home / DASHBOARD_FILE
    if not path.exists():
        say("nothing is up")
        return EXIT_OK
    for name, process in _read_state(path)["processes"].items():
        say(f"{name}: {_stop(process)}")
    path.unlink()
    return EXIT_OK


def _start(environment: Environment, port: int) -> None:
    home = configure(os.environ, environment)
    url = f"http://127.0.0.1:{port}/api"
    state: dict[str, Any] = {"api_url": url, "processes": {}}
    path = environment.home / DASHBOARD_FILE
    settings = server_environment(os.environ, port)
    _spawn(state, path, "server", server_command(port), settings, home)
    _wait(state, url, home / "server.log")
    settings["PREFECT_API_URL"] = url
    settings.setdefault("PREFECT_WORKER_QUERY_SECONDS", "2")
    _prefect(settings, "work-pool", "create", POOL, "--type", "process", "--overwrite")
    _deploy(settings)
    worker = [sys.executable, "-m", "prefect", "worker", "start", "--pool", POOL]
    _spawn(state, path, "worker", worker, settings, home)


def _deploy(settings: Mapping[str, str]) -> None:
    """Register the deployments; the working directory is a copy, so none is written by us."""
    with tempfile.TemporaryDirectory(prefix="m1-deploy-") as folder:
        target = Path(folder) / "prefect.yaml"
        shutil.copyfile(DEPLOYMENTS, target)
        _prefect(settings, "--no-prompt", "deploy", "--all", "--prefect-file", str(target))


def _prefect(settings: Mapping[str, str], *arguments: str) -> None:
    done = subprocess.run(  # noqa: S603  (our own argument list)
        [sys.executable, "-m", "prefect", *arguments],
        env=dict(settings),
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines()[-5:]
        raise UsageError(f"prefect {' '.join(arguments[:2])} failed:\n" + "\n".join(lines))


def _spawn(
    state: dict[str, Any],
    path: Path,
    name: str,
    command: list[str],
    settings: Mapping[str, str],
    home: Path,
) -> None:  # fmt: skip
    with (home / f"{name}.log").open("ab") as log:
        process = subprocess.Popen(  # noqa: S603  (our own argument list)
            command,
            env=dict(settings),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    state["processes"][name] = {"pid": process.pid, "start": process_start(process.pid)}
    part = path.with_suffix(".part")
    part.write_text(json.dumps(state))
    part.replace(path)


def _wait(state: dict[str, Any], url: str, log: Path) -> None:
    deadline = time.monotonic() + BOOT_SECONDS
    while not is_healthy(url):
        if not _is_alive(state["processes"]["server"]) or time.monotonic() > deadline:
            raise UsageError(f"the Prefect server did not start; its log: {log}")
        time.sleep(0.2)


def _read_state(path: Path) -> dict[str, Any]:
    try:
        state = json.loads(path.read_text())
        return {"processes": dict(state["processes"])}
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path} cannot be read: {error}; delete it") from error


def _is_alive(process: Mapping[str, Any]) -> bool:
    return bool(process["start"]) and process_start(process["pid"]) == process["start"]


def _stop(process: Mapping[str, Any]) -> str:
    if not _is_alive(process):
        return "had ended"
    running = psutil.Process(process["pid"])
    family = [*running.children(recursive=True), running]
    running.terminate()
    _, left = psutil.wait_procs(family, timeout=STOP_SECONDS)
    for one in left:
        one.kill()
    return "stopped" if not left else "killed"
