"""User ids that nothing else on this machine runs as, one per session. Only root can hand them out.

A user of its own is what makes "every process of this session" a question the kernel answers.
"""

import os
import threading
from pathlib import Path

from m1.infra.errors import SandboxFailedError

_PER_PROCESS = 256
_lock = threading.Lock()
_lent: set[int] = set()


def private_users() -> range:
    """The ids that this process may lend: no two processes of a machine share any.

    They lie in the upper half of what the user namespace maps, where no account is. Where it maps
    only the usual 65,536, processes whose numbers are 128 apart would share them.
    """
    mapped = int(Path("/proc/self/uid_map").read_text().split()[2])
    half = mapped // 2
    first = half + (os.getpid() * _PER_PROCESS) % (half - _PER_PROCESS)
    return range(first, first + _PER_PROCESS)


def lend_user() -> int:
    """An id that no living session has.

    Raises:
        SandboxFailedError: all are lent.
    """
    with _lock:
        for user in private_users():
            if user not in _lent:
                _lent.add(user)
                return user
    raise SandboxFailedError(f"{_PER_PROCESS} sessions are open; close some")


def take_back(user: int | None) -> None:
    """The session has ended and nothing runs as `user` any more."""
    with _lock:
        _lent.discard(-1 if user is None else user)
