"""What torchrun starts: read the spec, do the stage, leave the result.

    torchrun --nproc-per-node N -m m1.stages.worker <spec.json>

Exit codes: 0 ended, 65 bad input, 75 stopped after a checkpoint, anything else failed. The code
also goes into `worker_exit.json` beside the spec, because torchrun has only one code for failure.
"""

import ctypes
import faulthandler
import importlib
import json
import os
import signal
import sys
import traceback
from importlib import metadata
from pathlib import Path
from typing import Protocol

from m1.infra.errors import EXIT_BAD_INPUT, EXIT_OK, M1Error, StageFailedError, UsageError
from m1.infra.redact import redact
from m1.infra.store.open_store import open_store
from m1.stages.context import StageContext
from m1.stages.contract import RESULT_NAME, StageOutcome, StageResult, StageSpec
from m1.stages.registry import kind_of
from m1.stages.settings import StageSettings

EXIT_UNEXPECTED = 1
VERSIONED = ("m1-pipeline", "torch", "megatron-core", "sentencepiece", "numpy")
PR_SET_PDEATHSIG = 1


class StageModule(Protocol):
    """One file per stage: a module with this function."""

    def run(self, context: StageContext, settings: StageSettings) -> StageOutcome:
        """Do the stage; raise PreemptedError after a checkpoint when asked to stop."""
        ...


def versions() -> dict[str, str]:
    """Versions of what determines the result."""
    found = {name: metadata.version(name) for name in VERSIONED}
    found["python"] = ".".join(str(part) for part in sys.version_info[:3])
    return found


def run_spec(spec: StageSpec, *, work_dir: Path, rank: int) -> None:
    """Do the stage of `spec` and put its result in the store."""
    kind = kind_of(spec.stage)
    settings = kind.settings.model_validate(dict(spec.settings))
    scratch = work_dir / "scratch"
    scratch.mkdir(parents=True, exist_ok=True)
    context = StageContext(spec, open_store(spec.store_url), scratch=scratch, rank=rank)
    context.stop.install()
    context.report(phase="starting")
    module: StageModule = importlib.import_module(kind.module)  # type: ignore[assignment]
    outcome = module.run(context, settings)
    if context.is_main:
        _leave_result(context, outcome)


def _leave_result(context: StageContext, outcome: StageOutcome) -> None:
    context.report(phase="handing over")
    spec = context.spec
    result = StageResult(
        fingerprint=spec.fingerprint,
        attempt=spec.attempt,
        fence=spec.fence,
        objects=context.upload_outputs(),
        metrics=dict(outcome.metrics),
        versions=versions(),
        steps=outcome.steps,
        tokens=outcome.tokens,
        seconds=context.seconds(),
    )
    context.store.put_if_absent(context.prefix + RESULT_NAME, result.to_bytes())
    context.report(phase="ended", now=True)


def _die_with_parent() -> None:
    """A rank must not outlive torchrun (Linux; elsewhere the launcher's group kill remains)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _exit_code(error: M1Error) -> int:
    """Settings that cannot work are bad input: no retry will help."""
    if isinstance(error, UsageError):
        return EXIT_BAD_INPUT
    return EXIT_UNEXPECTED if error.exit_code == StageFailedError.exit_code else error.exit_code


def _guarded(spec_path: Path, rank: int) -> int:
    """Run, and turn every ending into an exit code."""
    try:
        spec = StageSpec.from_bytes(spec_path.read_bytes())
        run_spec(spec, work_dir=spec_path.parent, rank=rank)
    except M1Error as error:
        sys.stderr.write(f"{type(error).__name__}: {redact(str(error))}\n")
        return _exit_code(error)
    except Exception:  # noqa: BLE001  (the last line of defence of a process)
        sys.stderr.write(redact(traceback.format_exc()))
        return EXIT_UNEXPECTED
    return EXIT_OK


def main() -> int:
    """Entry point of every rank."""
    faulthandler.enable()
    _die_with_parent()
    rank = int(os.environ.get("RANK", "0"))
    spec_path = Path(sys.argv[1])
    code = _guarded(spec_path, rank)
    if rank == 0 or code not in (EXIT_OK, EXIT_UNEXPECTED):
        answer = spec_path.parent / "worker_exit.json"
        partial = answer.with_suffix(f".{rank}.part")
        partial.write_text(json.dumps({"exit_code": code}))
        partial.replace(answer)
    return code


if __name__ == "__main__":
    sys.exit(main())
