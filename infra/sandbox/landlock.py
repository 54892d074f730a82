"""Landlock rulesets by system call: which files may be read or written. Needs no rights.

Source: the kernel's `Documentation/userspace-api/landlock.rst`.
"""

import ctypes
import os
import platform
from collections.abc import Iterable
from pathlib import Path

from m1.infra.errors import SandboxFailedError, SandboxUnavailableError

_CREATE, _ADD_RULE = 444, 445  # the same on every machine
_VERSION_FLAG = 1
_RULE_PATH_BENEATH = 1
SCOPED_SIGNALS_ABI = 6  # Linux 6.12
_TRUNCATE_ABI, _NETWORK_ABI, _IOCTL_ABI = 3, 4, 5

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_FOLDER = 1, 2, 4, 8
_ALL_OF_ABI_1 = (1 << 13) - 1
_REFER, _TRUNCATE, _IOCTL_DEVICE = 1 << 13, 1 << 14, 1 << 15
_MAKE_DEVICES = 1 << 6 | 1 << 11  # character and block devices
_BIND_AND_CONNECT_TCP = 3
_SCOPE_ALL = 3  # abstract unix sockets, signals

READ = _EXECUTE | _READ_FILE | _READ_FOLDER
DEVICE = _READ_FILE | _WRITE_FILE

_libc = ctypes.CDLL(None, use_errno=True)


class _RulesetAttributes(ctypes.Structure):
    _fields_ = (
        ("handled_access_fs", ctypes.c_uint64),
        ("handled_access_net", ctypes.c_uint64),
        ("scoped", ctypes.c_uint64),
    )


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _layout_ = "ms"
    _fields_ = (("allowed_access", ctypes.c_uint64), ("parent", ctypes.c_int32))


def landlock_abi() -> int:
    """Version of Landlock in this kernel; 0 where there is none."""
    if platform.system() != "Linux":
        return 0  # the number would be some other call
    return max(0, int(_libc.syscall(_CREATE, None, ctypes.c_size_t(0), _VERSION_FLAG)))


def open_ruleset(
    abi: int, *, readable: Iterable[Path], writable: Iterable[Path], devices: Iterable[Path]
) -> int:
    """A descriptor for `landlock_restrict_self`: everything not listed is refused.

    Raises:
        SandboxUnavailableError: `abi` is older than 3 and cannot refuse truncation.
        SandboxFailedError: the kernel refused the ruleset.
    """
    if abi < _TRUNCATE_ABI:
        raise SandboxUnavailableError(f"Landlock ABI {abi} is too old, at least 3 (Linux 6.2)")
    handled = _ALL_OF_ABI_1 | _REFER | _TRUNCATE | (_IOCTL_DEVICE if abi >= _IOCTL_ABI else 0)
    attributes = _RulesetAttributes(
        handled,
        _BIND_AND_CONNECT_TCP if abi >= _NETWORK_ABI else 0,
        _SCOPE_ALL if abi >= SCOPED_SIGNALS_ABI else 0,
    )
    # an old kernel takes a longer structure as long as what it does not know is zero
    size = ctypes.c_size_t(ctypes.sizeof(attributes))
    ruleset = _checked(_libc.syscall(_CREATE, ctypes.byref(attributes), size, 0))
    rights = handled & ~_MAKE_DEVICES
    for paths, access in ((readable, READ), (writable, rights), (devices, DEVICE)):
        for path in paths:
            _add(ruleset, path, access)
    return ruleset


def _add(ruleset: int, path: Path, access: int) -> None:
    parent = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        if not path.is_dir():
            access &= ~_READ_FOLDER  # a right of folders only
        rule = _PathBeneath(access, parent)
        _checked(_libc.syscall(_ADD_RULE, ruleset, _RULE_PATH_BENEATH, ctypes.byref(rule), 0))
    finally:
        os.close(parent)


def _checked(answer: int) -> int:
    if answer < 0:
        raise SandboxFailedError(f"Landlock: {os.strerror(ctypes.get_errno())}")
    return answer
