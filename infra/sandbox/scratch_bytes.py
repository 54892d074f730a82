"""How much disk a scratch folder really holds, deleted files included. Reads, never writes.

What cannot be looked at counts as more than any limit: hiding is not a way to get more.
"""

import os
from contextlib import suppress
from pathlib import Path

TOO_MUCH_BYTES = 2**62
_ENTRY_BYTES = 4096  # names are not free either
_BLOCK_BYTES = 512  # the unit of st_blocks


def folder_bytes(folder: Path, enough_bytes: int) -> int:
    """Bytes on disk of everything that has a name below a folder; stops above `enough_bytes`."""
    total, waiting = 0, [os.fspath(folder)]
    while waiting:
        try:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    total += _ENTRY_BYTES + _bytes_of_entry(entry)
                    if total > enough_bytes:
                        return total
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
        except (FileNotFoundError, NotADirectoryError):
            continue  # it went away while we looked
        except OSError:  # no right to read it, or a path longer than paths may be
            return TOO_MUCH_BYTES
    return total


def hidden_bytes(process: int, scratch: Path, file_bytes: int) -> int:
    """Bytes of files without a name that a process, or a thread of it, still holds.

    A deleted file that is only mapped has no size that can be read: it counts as `file_bytes`.
    """
    inodes: dict[int, int] = {}
    device = scratch.stat().st_dev
    for descriptors in Path(f"/proc/{process}/task").glob("*/fd"):
        with suppress(OSError):
            for name in os.listdir(descriptors):
                with suppress(OSError):
                    found = os.stat(descriptors / name)
                    if found.st_nlink == 0 and found.st_dev == device:
                        inodes[found.st_ino] = found.st_blocks * _BLOCK_BYTES
    with suppress(OSError), Path(f"/proc/{process}/maps").open(errors="replace") as maps:
        for line in maps:
            if line.endswith("(deleted)\n") and os.fspath(scratch) in line:
                inodes.setdefault(int(line.split()[4]), file_bytes)
    return sum(inodes.values())


def _bytes_of_entry(entry: os.DirEntry[str]) -> int:
    try:
        return entry.stat(follow_symlinks=False).st_blocks * _BLOCK_BYTES
    except FileNotFoundError:
        return 0
