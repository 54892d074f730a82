"""`m1 plan` and `m1 doctor`: what it would cost, and whether this machine can. Starts nothing."""

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from typing import Any

import psutil

from m1.flows.accepted import unknown_name
from m1.flows.commands_look import print_json
from m1.flows.commands_run import store_of
from m1.flows.plan_screen import show_plan, write_plot
from m1.flows.planned_stages import load_planned, planned_stages
from m1.flows.preset import Preset, preset_names
from m1.flows.screen import show_table, size_words
from m1.infra.errors import (
    EXIT_OK,
    EXIT_STAGE_FAILED,
    InvalidSettingError,
    M1Error,
    SandboxUnavailableError,
    UsageError,
)
from m1.infra.sandbox.open_sandbox import find_isolation
from m1.infra.sandbox.protocol import SandboxLimits
from m1.infra.settings import load_environment
from m1.model.cost.memory import GPU_BYTES
from m1.model.cost.plan import Prices
from m1.model.cost.plan import plan as plan_cost
from m1.model.cost.simulate import Circumstances, simulate

PACKAGES = ("torch", "megatron-core", "prefect", "sentencepiece", "daft", "transformers", "boto3")
REQUIRED = ("torch", "megatron-core", "prefect", "sentencepiece")
MAX_TRIALS = 100_000
MIN_FREE_BYTES = 5 * 2**30  # ours: a toy run stores well under a tenth of this


def do_plan(arguments: argparse.Namespace) -> int:
    """Parameters, memory, FLOPs, hours, cost and bytes of a preset."""
    name = arguments.preset or "toy"
    if name not in preset_names():
        raise unknown_name("preset", name, preset_names())
    prices, circumstances = _prices(arguments), _circumstances(arguments)
    preset = load_planned(name, arguments.overrides, gpu_bytes=_gpu_bytes(arguments))
    answer = {"preset": preset.name, **plan_of(preset, prices)}
    if arguments.simulate:
        answer["simulation"] = _simulated(preset, prices, circumstances)
    if arguments.plot:
        write_plot(arguments.plot, answer)
    if arguments.json:
        print_json(answer)
    else:
        show_plan(preset.description, answer, prices)
    return EXIT_OK


def plan_of(preset: Preset, prices: Prices | None = None) -> dict[str, Any]:
    """The plan of every training stage of a preset, as JSON values."""
    stages = planned_stages(preset)
    return plan_cost(preset.model, preset.layout, stages=stages, prices=prices).to_json()


def _simulated(preset: Preset, prices: Prices, circumstances: Circumstances) -> dict[str, Any]:
    stages = planned_stages(preset)
    try:
        return simulate(preset.model, stages, circumstances=circumstances, prices=prices)
    except ValueError as error:
        raise UsageError(f"--simulate: {error}") from error


# flag -> (smallest, largest, whether the smallest itself is accepted)
_RANGES = {
    "price": (0.0, 1e6, True),
    "utilisation": (0.0, 1.0, False),
    "gpu_gigabytes": (1.0, 1e4, True),
    "node_failures_per_year": (0.0, 1e6, False),
    "restart_minutes": (0.0, 1e6, False),
    "store_gigabytes_per_second": (0.0, 1e6, False),
    "trials": (1, MAX_TRIALS, True),
    "seed": (0, 2**31 - 1, True),
}


def _given(arguments: argparse.Namespace, name: str, scale: float = 1.0) -> Any:
    """The flag's value times `scale`; None if it was not typed.

    Raises:
        InvalidSettingError: out of its range.
    """
    value = getattr(arguments, name)
    if value is None:
        return None
    low, high, includes_low = _RANGES[name]
    if not low <= value <= high or (value == low and not includes_low):
        sign = ">=" if includes_low else ">"
        raise InvalidSettingError(
            field="--" + name.replace("_", "-"),
            value=value,
            accepted=f"number {sign} {low:g}, <= {high:g}",
        )
    return value * scale


def _only_given(values: Mapping[str, Any]) -> dict[str, Any]:
    """Without what was not typed, so that the defaults stand in one place."""
    return {name: value for name, value in values.items() if value is not None}


def _prices(arguments: argparse.Namespace) -> Prices:
    price, share = _given(arguments, "price"), _given(arguments, "utilisation")
    return Prices(**_only_given({"per_gpu_hour": price, "utilisation": share}))


def _gpu_bytes(arguments: argparse.Namespace) -> int:
    size = _given(arguments, "gpu_gigabytes", 1e9)
    return GPU_BYTES if size is None else int(size)


def _circumstances(arguments: argparse.Namespace) -> Circumstances:
    typed = {
        "node_failures_per_year": _given(arguments, "node_failures_per_year"),
        "restart_seconds": _given(arguments, "restart_minutes", 60.0),
        "store_bytes_per_second": _given(arguments, "store_gigabytes_per_second", 1e9),
        "trials": _given(arguments, "trials", 1),
        "seed": _given(arguments, "seed", 1),
    }
    return Circumstances(**_only_given(typed))


# ---- doctor --------------------------------------------------------------------------------------


def do_doctor(arguments: argparse.Namespace) -> int:
    """What is here, what is missing, and what that prevents."""
    checks = [*_packages(), *_machine(), _sandbox(), _store(arguments)]
    if arguments.json:
        print_json({"checks": checks})
    else:
        rows = [[c["name"], "ok" if c["ok"] else "MISSING", c["found"], c["hint"]] for c in checks]
        show_table("this machine", ("what", "state", "found", "if missing"), rows)
    bad = any(not check["ok"] and check["required"] for check in checks)
    return EXIT_STAGE_FAILED if bad else EXIT_OK


def _check(
    name: str, found: object, *, ok: bool = True, required: bool = False, hint: str = ""
) -> dict[str, Any]:
    return {
        "name": name,
        "ok": ok,
        "found": str(found),
        "required": required,
        "hint": "" if ok else hint,
    }


def _packages() -> list[dict[str, Any]]:
    version = ".".join(str(part) for part in sys.version_info[:3])
    checks = [_check("python", version, ok=sys.version_info >= (3, 11), required=True)]
    for name in PACKAGES:
        try:
            found: str | None = metadata.version(name)
        except metadata.PackageNotFoundError:
            found = None
        checks.append(
            _check(
                name,
                found or "-",
                ok=found is not None,
                required=name in REQUIRED,
                hint="make setup",
            )
        )
    return checks


def _machine() -> list[dict[str, Any]]:
    home = load_environment(os.environ).home
    existing = next(path for path in (home, *home.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    memory = psutil.virtual_memory()
    gpus = _gpus()
    return [
        _check("cores", psutil.cpu_count(), required=True),
        _check("memory", f"{size_words(memory.available)} free of {size_words(memory.total)}"),
        _check(
            "disk",
            f"{size_words(free)} free at {existing}",
            ok=free >= MIN_FREE_BYTES,
            hint=f"at least {size_words(MIN_FREE_BYTES)}, or set M1_HOME",
        ),
        _check("GPU", gpus or "none: jobs run on the CPU (gloo)"),
    ]


def _gpus() -> str:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return ""
    listed = subprocess.run(  # noqa: S603  (a fixed argument list)
        [tool, "--query-gpu=name", "--format=csv,noheader"],
        capture_output=True,
        text=True,
        check=False,
        timeout=10,
    )
    names = listed.stdout.split("\n") if listed.returncode == 0 else []
    return ", ".join(name.strip() for name in names if name.strip())


def _sandbox() -> dict[str, Any]:
    try:
        found = find_isolation(SandboxLimits())
    except SandboxUnavailableError as error:
        return _check("sandbox", "-", ok=False, hint=f"apt install bubblewrap; {error}")
    return _check("sandbox", type(found).__name__)


def _store(arguments: argparse.Namespace) -> dict[str, Any]:
    store = store_of(arguments)
    try:
        store.probe()
    except M1Error as error:
        return _check("store", store.url, ok=False, required=True, hint=str(error))
    return _check("store", store.url, required=True)
