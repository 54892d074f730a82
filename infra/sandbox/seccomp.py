"""A seccomp filter as classic BPF, assembled here. Not a complete profile of its own.

It takes away what no program of ours needs and what has broken sandboxes before; files and the
network are the business of the namespaces or of Landlock. Numbers: the kernel's
`arch/x86/entry/syscalls/syscall_64.tbl` and `include/uapi/asm-generic/unistd.h` (aarch64).
"""

import errno
import platform
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from m1.infra.errors import SandboxUnavailableError

# name -> (number on x86_64, number on aarch64); None where the machine has no such call
_REFUSED: dict[str, tuple[int | None, int | None]] = {
    # other processes
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "process_madvise": (440, 440),
    "pidfd_getfd": (438, 438),
    "kcmp": (312, 272),
    # namespaces, mounts, roots
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "fanotify_init": (300, 262),
    # the kernel itself
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "userfaultfd": (323, 282),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "iopl": (172, None),
    "ioperm": (173, None),
    "modify_ldt": (154, None),
    "personality": (135, 92),
    "syslog": (103, 116),
    "reboot": (169, 142),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "acct": (163, 89),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "vhangup": (153, 58),
    "settimeofday": (164, 170),
    "adjtimex": (159, 171),
    "clock_settime": (227, 112),
    "clock_adjtime": (305, 266),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
    # keys
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    # memory that neither a file limit nor an address-space limit counts
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "shmget": (29, 194),
    "shmat": (30, 196),
    "semget": (64, 190),
    "msgget": (68, 186),
    "mq_open": (240, 180),
    "mbind": (237, 235),
    "set_mempolicy": (238, 237),
    "migrate_pages": (256, 238),
    "move_pages": (279, 239),
    "vmsplice": (278, 75),
}
# where files that are not the sandbox's belong to the same user: Landlock does not cover these
_FILE_METADATA: dict[str, tuple[int | None, int | None]] = {
    "chmod": (90, None),
    "fchmodat": (268, 53),
    "fchmodat2": (452, 452),
    "chown": (92, None),
    "lchown": (94, None),
    "fchownat": (260, 54),
    "setxattr": (188, 5),
    "lsetxattr": (189, 6),
    "setxattrat": (463, 463),
    "removexattr": (197, 14),
    "lremovexattr": (198, 15),
    "removexattrat": (466, 466),
    "utime": (132, None),
    "utimes": (235, None),
    "futimesat": (261, None),
    "utimensat": (280, 88),
}
# where only socket pairs are left: passing descriptors would hide files from the watch
_MESSAGES: dict[str, tuple[int | None, int | None]] = {
    "sendmsg": (46, 211),
    "sendmmsg": (307, 269),
}
_CLONE_NEW = 0x7E020000  # every CLONE_NEW* flag of clone(2)
_TERMINAL_REQUESTS = (0x5412, 0x541C)  # TIOCSTI and TIOCLINUX type into somebody's terminal
_AF_UNIX, _AF_INET, _AF_INET6 = 1, 2, 10
_NEWEST_KNOWN = 466  # Linux 6.16; a later call is answered as if the kernel did not have it
_X32_BIT = 0x40000000

_LOAD_WORD = 0x20  # BPF_LD | BPF_W | BPF_ABS
_JUMP_EQUAL, _JUMP_GREATER_EQUAL, _JUMP_ANY_BIT = 0x15, 0x35, 0x45  # BPF_JMP | ... | BPF_K
_RETURN = 0x06
_ALLOW, _ERRNO, _KILL_PROCESS = 0x7FFF0000, 0x00050000, 0x80000000
_NUMBER_OFFSET, _MACHINE_OFFSET, _ARGUMENTS_OFFSET = 0, 4, 16  # struct seccomp_data

_Instruction = tuple[int, int, int, int]  # code, jump if true, jump if false, operand


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What the filter needs to know about a processor."""

    audit_code: int
    column: int
    clone: int
    clone3: int
    ioctl: int
    socket: int


MACHINES = {
    "x86_64": Machine(audit_code=0xC000003E, column=0, clone=56, clone3=435, ioctl=16, socket=41),
    "aarch64": Machine(
        audit_code=0xC00000B7, column=1, clone=220, clone3=435, ioctl=29, socket=198
    ),
}


def refused_numbers(machine: str, *, network: bool, metadata: bool) -> dict[str, int]:
    """Every call that `seccomp_filter` refuses whatever its arguments, by name."""
    names = _REFUSED | ({} if network else _MESSAGES) | ({} if metadata else _FILE_METADATA)
    pairs = ((name, pair[MACHINES[machine].column]) for name, pair in names.items())
    return {name: number for name, number in pairs if number is not None}


def seccomp_filter(*, network: bool, metadata: bool = True, machine: str | None = None) -> bytes:
    """The filter as an array of `struct sock_filter`.

    Args:
        network: whether sockets may be made at all (inside a network namespace of its own);
            address families other than unix, IPv4 and IPv6 are refused in any case.
        metadata: whether modes, owners, times and attributes of files may be changed by path.
        machine: as `platform.machine()` names it; this machine by default.

    Raises:
        SandboxUnavailableError: no table for this machine.
    """
    name = machine or platform.machine()
    if name not in MACHINES:
        raise SandboxUnavailableError(
            f"no seccomp table for machine {name!r}; known: {', '.join(MACHINES)}"
        )
    this = MACHINES[name]
    program = [
        (_LOAD_WORD, 0, 0, _MACHINE_OFFSET),
        (_JUMP_EQUAL, 1, 0, this.audit_code),
        (_RETURN, 0, 0, _KILL_PROCESS),
        (_LOAD_WORD, 0, 0, _NUMBER_OFFSET),
        *_answer(_JUMP_GREATER_EQUAL, _X32_BIT, _KILL_PROCESS),
        *_answer(_JUMP_GREATER_EQUAL, _NEWEST_KNOWN + 1, _ERRNO | errno.ENOSYS),
        # its flags lie in memory, which a filter cannot read; without it libc falls back to clone
        *_answer(_JUMP_EQUAL, this.clone3, _ERRNO | errno.ENOSYS),
    ]
    for number in refused_numbers(name, network=network, metadata=metadata).values():
        program += _answer(_JUMP_EQUAL, number, _ERRNO | errno.EPERM)
    program += _if_call(this.clone, _refuse_flags(_CLONE_NEW))
    program += _if_call(this.ioctl, _refuse_values(1, _TERMINAL_REQUESTS))
    families = (_AF_UNIX, _AF_INET, _AF_INET6) if network else ()
    program += _if_call(this.socket, _allow_values(0, families))
    program.append((_RETURN, 0, 0, _ALLOW))
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in program)


def _answer(test: int, operand: int, action: int) -> list[_Instruction]:
    return [(test, 0, 1, operand), (_RETURN, 0, 0, action)]


def _if_call(number: int, body: Sequence[_Instruction]) -> list[_Instruction]:
    """`body` must end with a return."""
    return [(_JUMP_EQUAL, 0, len(body), number), *body]


def _argument(index: int) -> _Instruction:
    return (_LOAD_WORD, 0, 0, _ARGUMENTS_OFFSET + 8 * index)  # the low half, little-endian


def _refuse_flags(mask: int) -> list[_Instruction]:
    refusal = _answer(_JUMP_ANY_BIT, mask, _ERRNO | errno.EPERM)
    return [_argument(0), *refusal, (_RETURN, 0, 0, _ALLOW)]


def _refuse_values(index: int, values: Sequence[int]) -> list[_Instruction]:
    refusals = [step for value in values for step in _answer(_JUMP_EQUAL, value, _ERRNO | 1)]
    return [_argument(index), *refusals, (_RETURN, 0, 0, _ALLOW)]


def _allow_values(index: int, values: Sequence[int]) -> list[_Instruction]:
    allowed = [step for value in values for step in _answer(_JUMP_EQUAL, value, _ALLOW)]
    return [_argument(index), *allowed, (_RETURN, 0, 0, _ERRNO | errno.EACCES)]
