"""A Prefect API for one command: the dashboard's if it is up, else a server of our own.

Flow runs are recorded in the database of this machine (`<home>/prefect`) either way, so the
dashboard shows them later. Imports Prefect only after its settings are in the environment.
"""

import ctypes
import fcntl
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from pathlib import Path

from m1.infra.errors import UsageError
from m1.infra.settings import Environment

BOOT_SECONDS = 120.0
STOP_SECONDS = 10.0
DASHBOARD_FILE = "dashboard.json"
_PR_SET_PDEATHSIG = 1
#: Quiet, offline, and no surprise on a machine that knows another Prefect.
SETTINGS = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
    "PREFECT_CLIENT_SERVER_VERSION_CHECK_ENABLED": "false",
    "PREFECT_CLOUD_ENABLE_ORCHESTRATION_TELEMETRY": "false",
    "PREFECT_SERVER_LOGGING_LEVEL": "WARNING",
    "PREFECT_LOGGING_LEVEL": "WARNING",
    "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
    "PREFECT_CLI_PROMPT": "false",
}


#: A server for one run schedules nothing. `--no-services` would also drop the recorder of task
#: runs, and the dashboard would later show a flow run without tasks.
UNUSED_SERVICES = {
    f"PREFECT_SERVER_SERVICES_{name}_ENABLED": "false"
    for name in ("SCHEDULER", "LATE_RUNS", "CANCELLATION_CLEANUP", "PAUSE_EXPIRATIONS", "FOREMAN")
}
SETTLE_SECONDS = 1.5  # ours: task runs reach the database through a queue of the server


def configure(environ: MutableMapping[str, str], environment: Environment) -> Path:
    """Put our Prefect settings into `environ`, where the person has set none; the home folder."""
    for name, value in SETTINGS.items():
        environ.setdefault(name, value)
    home = Path(environ.setdefault("PREFECT_HOME", str(environment.home / "prefect")))
    environ.setdefault("PREFECT_PROFILES_PATH", str(home / "profiles.toml"))
    home.mkdir(parents=True, exist_ok=True)
    return home


@contextmanager
def prefect_session(environ: MutableMapping[str, str], environment: Environment) -> Iterator[str]:
    """The URL of a Prefect API that answers, set as PREFECT_API_URL while the block runs.

    Raises:
        UsageError: our own server did not come up; the message names its log.
    """
    home = configure(environ, environment)
    earlier = environ.get("PREFECT_API_URL")
    url = earlier or dashboard_url(environment)
    if url is not None:
        environ["PREFECT_API_URL"] = url
        yield url
        return
    with _own_server(environ, home) as own:
        environ["PREFECT_API_URL"] = own
        try:
            yield own
        finally:
            _forget(environ, earlier)


def _forget(environ: MutableMapping[str, str], earlier: str | None) -> None:
    environ.pop("PREFECT_API_URL", None)
    if earlier is not None:
        environ["PREFECT_API_URL"] = earlier


def dashboard_url(environment: Environment) -> str | None:
    """API of a running `m1 up`, or None."""
    try:
        state = json.loads((environment.home / DASHBOARD_FILE).read_text())
        url = str(state["api_url"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
    return url if is_healthy(url) else None


def is_healthy(url: str, *, timeout_seconds: float = 2.0) -> bool:
    """Whether a Prefect API answers at `url` (plain HTTP, as we start it)."""
    if not url.startswith(("http://", "https://")):
        return False
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=timeout_seconds) as answer:  # noqa: S310
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError, ValueError):
        return False


def free_port() -> int:
    """A loopback port that is free now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def server_command(port: int) -> list[str]:
    """The command line of a server on loopback."""
    command = [sys.executable, "-m", "prefect", "server", "start"]
    return [*command, "--host", "127.0.0.1", "--port", str(port)]


def server_environment(environ: MutableMapping[str, str], port: int) -> dict[str, str]:
    """The environment of a server: the UI must be told where its API is (trap)."""
    settings = {name: value for name, value in environ.items() if name != "PREFECT_API_URL"}
    settings["PREFECT_SERVER_API_PORT"] = str(port)
    settings["PREFECT_SERVER_UI_API_URL"] = f"http://127.0.0.1:{port}/api"
    return settings


@contextmanager
def _own_server(environ: MutableMapping[str, str], home: Path) -> Iterator[str]:
    port, log = free_port(), home / "server.log"
    url = f"http://127.0.0.1:{port}/api"
    with _boot_lock(home), log.open("ab") as output:
        server = subprocess.Popen(  # noqa: S603  (our own argument list)
            server_command(port),
            env=server_environment(environ, port) | UNUSED_SERVICES,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_die_with_parent(),
        )
        try:
            environ["PREFECT_API_URL"] = url
            importlib.import_module("m1.flows.pipeline")  # seconds, while the server boots
            _wait_until_healthy(server, url, log)
        except BaseException:
            _end(server)
            raise
    try:
        yield url
    finally:
        _flush_logs()
        time.sleep(SETTLE_SECONDS)
        _end(server)


def _flush_logs() -> None:
    """Send what the log queue still holds: after the server has gone it would only complain."""
    from prefect.logging.handlers import APILogWorker

    APILogWorker.drain_all(timeout=5)


@contextmanager
def _boot_lock(home: Path) -> Iterator[None]:
    """Two first starts must not migrate one database at the same time."""
    with (home / "boot.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _wait_until_healthy(server: "subprocess.Popen[bytes]", url: str, log: Path) -> None:
    deadline = time.monotonic() + BOOT_SECONDS
    while not is_healthy(url):
        if server.poll() is not None or time.monotonic() > deadline:
            raise UsageError(f"the Prefect server did not start; its log: {log}")
        time.sleep(0.1)


def _die_with_parent() -> Callable[[], None] | None:
    """A child hook that ends the server when this process is gone, however it went."""
    if sys.platform != "linux":
        return None
    prctl, parent = ctypes.CDLL(None, use_errno=True).prctl, os.getpid()

    def hook() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGTERM)

    return hook


def _end(server: "subprocess.Popen[bytes]") -> None:
    server.terminate()
    try:
        server.wait(timeout=STOP_SECONDS)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()


def quiet_console() -> None:
    """Keep Prefect's log lines out of the progress display; its API handlers stay."""
    import logging

    from prefect.logging.handlers import PrefectConsoleHandler

    names = [name for name in logging.root.manager.loggerDict if name.startswith("prefect")]
    for logger in (logging.getLogger(), *map(logging.getLogger, names)):
        for handler in list(logger.handlers):
            if isinstance(handler, PrefectConsoleHandler):
                logger.removeHandler(handler)
