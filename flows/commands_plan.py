"""`m1 plan` and `m1 doctor`: what it would cost, and whether this machine can. Starts nothing."""

import argparse
import os
import shutil
import subprocess
import sys
from importlib import metadata
from typing import Any

import psutil

from m1.flows.accepted import unknown_name
from m1.flows.commands_look import print_json
from m1.flows.commands_run import store_of
from m1.flows.preset import Preset, load_preset, preset_names
from m1.flows.screen import say, show_table, size_words
from m1.infra.errors import EXIT_OK, EXIT_STAGE_FAILED, M1Error, SandboxUnavailableError
from m1.infra.sandbox.open_sandbox import find_isolation
from m1.infra.sandbox.protocol import SandboxLimits
from m1.infra.settings import load_environment
from m1.model.cost import StageWork
from m1.model.cost import plan as plan_cost
from m1.stages.settings import ReinforceSettings, StageSettings, TrainSettings

PACKAGES = ("torch", "megatron-core", "prefect", "sentencepiece", "daft", "transformers", "boto3")
REQUIRED = ("torch", "megatron-core", "prefect", "sentencepiece")
MIN_FREE_BYTES = 5 * 2**30  # ours: a toy run stores well under a tenth of this


def do_plan(arguments: argparse.Namespace) -> int:
    """Parameters, memory, FLOPs, hours, cost and bytes of a preset."""
    name = arguments.preset or "toy"
    if name not in preset_names():
        raise unknown_name("preset", name, preset_names())
    preset = load_preset(name, arguments.overrides)
    answer = {"preset": preset.name, **plan_of(preset)}
    if arguments.json:
        print_json(answer)
    else:
        _show_plan(preset, answer)
    return EXIT_OK


def plan_of(preset: Preset) -> dict[str, Any]:
    """The plan of every training stage of a preset, as JSON values."""
    stages = [
        work
        for stage in preset.order
        if (work := stage_work(stage, preset.settings[stage])) is not None
    ]
    return dict(plan_cost(preset.model, preset.layout, stages=stages).to_json())


def stage_work(stage: str, settings: StageSettings) -> StageWork | None:
    """Tokens that a stage trains on and generates; None when it trains nothing.

    A rollout is counted at its whole window: an upper bound.
    """
    if isinstance(settings, ReinforceSettings):
        rollouts = settings.steps * settings.prompts_per_step * settings.samples_per_prompt
        tokens = rollouts * settings.window_tokens
        return StageWork(
            name=stage,
            tokens=tokens,
            window_tokens=settings.window_tokens,
            generated_tokens=tokens,
        )
    if isinstance(settings, TrainSettings):
        tokens = settings.steps * settings.windows_per_step * settings.window_tokens
        return StageWork(name=stage, tokens=tokens, window_tokens=settings.window_tokens)
    return None


def _show_plan(preset: Preset, answer: dict[str, Any]) -> None:
    parameters, memory = answer["parameters"], answer["memory_per_gpu"]
    say(f"{preset.name}: {preset.description}")
    say(f"parameters    {parameters['total']:,} ({parameters['active']:,} active per token)")
    say(f"ranks         {answer['layout']['world_size']:,}")
    say(f"memory / rank {size_words(memory['total'])}")
    say(f"store         {size_words(answer['store_bytes'])}")
    rows = [
        [stage, f"{hours:,.2f}", f"{answer['cost'][stage]:,.0f}"]
        for stage, hours in answer["gpu_hours"].items()
    ]
    show_table("estimated at 30 % of an H800's peak", ("stage", "GPU-hours", "US dollars"), rows)


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
