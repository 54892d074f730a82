"""The best isolation that this machine has, or none at all: never a weaker one by accident."""

from collections.abc import Sequence
from pathlib import Path

from m1.infra.errors import SandboxUnavailableError
from m1.infra.sandbox.bubblewrap import BubblewrapSandbox
from m1.infra.sandbox.landlock_sandbox import LandlockSandbox
from m1.infra.sandbox.pool import WarmPool
from m1.infra.sandbox.protocol import Sandbox, SandboxLimits

_KINDS = (BubblewrapSandbox, LandlockSandbox)


def open_sandbox(
    limits: SandboxLimits,
    *,
    import_paths: Sequence[Path] = (),
    preload: Sequence[str] = (),
    ready: int = 4,
    at_once: int | None = None,
) -> WarmPool:
    """A warm pool over bubblewrap, else over Landlock.

    Raises:
        SandboxUnavailableError: neither works here; the message says what each of them lacks.
    """
    sandbox = find_isolation(limits, import_paths=import_paths, preload=preload)
    return WarmPool(sandbox, ready=ready, at_once=at_once)


def find_isolation(
    limits: SandboxLimits, *, import_paths: Sequence[Path] = (), preload: Sequence[str] = ()
) -> Sandbox:
    """A sandbox that has just started one session to prove that it works.

    Raises:
        SandboxUnavailableError: there is none.
    """
    missing = []
    for kind in _KINDS:
        try:
            return kind(limits, import_paths=import_paths, preload=preload)
        except SandboxUnavailableError as error:
            missing.append(str(error))
    raise SandboxUnavailableError(
        "untrusted code is not run on this machine: " + "; ".join(missing)
    )
