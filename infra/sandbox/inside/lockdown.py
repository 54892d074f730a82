"""Gives up rights for good: user, Landlock, seccomp, resource limits. Standard library only.

Called by the harness before it has seen any program, and again in each child that will run one.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

_SET_DUMPABLE, _SET_SECCOMP, _SET_SUBREAPER, _SET_NO_NEW_PRIVILEGES = 4, 22, 36, 38
_SECCOMP_MODE_FILTER = 2
_CAPABILITY_VERSION_3 = 0x20080522
_LANDLOCK_CREATE, _LANDLOCK_RESTRICT = 444, 446
_SCOPE_SIGNAL = 2

_libc = ctypes.CDLL(None, use_errno=True)


class _FilterProgram(ctypes.Structure):
    """`struct sock_fprog`."""

    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))


class _CapabilityHeader(ctypes.Structure):
    """`struct __user_cap_header_struct`; process 0 is the calling one."""

    _fields_ = (("version", ctypes.c_uint32), ("process", ctypes.c_int))


class _RulesetAttributes(ctypes.Structure):
    """`struct landlock_ruleset_attr`, Landlock ABI 6."""

    _fields_ = (
        ("handled_access_fs", ctypes.c_uint64),
        ("handled_access_net", ctypes.c_uint64),
        ("scoped", ctypes.c_uint64),
    )


def lock_down(config: Mapping[str, Any]) -> None:
    """Give up what the configuration of the sandbox says, in the only order that works.

    Raises:
        RuntimeError: nothing would confine `kill_all_others` to this sandbox.
    """
    if os.getpid() != 1 and config["user"] is None and not config["is_scoped"]:
        raise RuntimeError("no PID namespace, no user of its own and no signal scope")
    _checked("prctl", _libc.prctl(_SET_NO_NEW_PRIVILEGES, 1, 0, 0, 0))
    _checked("prctl", _libc.prctl(_SET_SUBREAPER, 1, 0, 0, 0))  # orphans come back to be killed
    if config["user"] is not None:
        os.setgroups([])
        os.setresgid(config["user"], config["user"], config["user"])
        os.setresuid(config["user"], config["user"], config["user"])
    header, none = _CapabilityHeader(_CAPABILITY_VERSION_3, 0), (ctypes.c_uint32 * 6)()
    # changing the user leaves the inheritable ones, which bubblewrap had set
    _checked("capset", _libc.capset(ctypes.byref(header), none))
    # without this a program could write into our memory through /proc
    _checked("prctl", _libc.prctl(_SET_DUMPABLE, 0, 0, 0, 0))
    if config["landlock"] is not None:
        _restrict(config["landlock"])
    _install_filter(config["seccomp"])


def lock_child(config: Mapping[str, Any]) -> None:
    """Resource limits, and a Landlock domain below ours: a program cannot signal its harness."""
    # what a program holds may be looked at from outside; a domain keeps other programs away
    _checked("prctl", _libc.prctl(_SET_DUMPABLE, 1, 0, 0, 0))
    if config["is_scoped"]:
        _scope_signals()
    for name, value in config["rlimits"].items():
        number = getattr(resource, name)
        hard = resource.getrlimit(number)[1]
        limit = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(number, (limit, limit))


def kill_all_others() -> None:
    """SIGKILL to every process of this PID namespace, Landlock domain or user, except this one."""
    try:
        os.kill(-1, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return


def _scope_signals() -> None:
    """Enter a Landlock domain that restricts nothing but signals to the outside; ABI 6."""
    attributes = _RulesetAttributes(0, 0, _SCOPE_SIGNAL)
    ruleset = _checked(
        "landlock_create_ruleset",
        _libc.syscall(
            _LANDLOCK_CREATE,
            ctypes.byref(attributes),
            ctypes.c_size_t(ctypes.sizeof(attributes)),
            0,
        ),
    )
    _restrict(ruleset)
    os.close(ruleset)


def _restrict(ruleset: int) -> None:
    _checked("landlock_restrict_self", _libc.syscall(_LANDLOCK_RESTRICT, ruleset, 0))


def _install_filter(descriptor: int) -> None:
    code = os.pread(descriptor, 1 << 16, 0)
    buffer = ctypes.create_string_buffer(code, len(code))
    program = _FilterProgram(len(code) // 8, ctypes.cast(buffer, ctypes.c_void_p))
    _checked(
        "seccomp",
        _libc.prctl(_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0),
    )


def _checked(name: str, answer: int) -> int:
    if answer < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
    return answer
