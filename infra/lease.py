"""Who may work on a stage: one object with a fencing number. Does not guard single writes.

Two fields outlive their holder, because what they promise does:

    sealed  the attempt that may be committed. A holder names it with one conditional write, so a
            holder that was fenced off cannot. Whoever takes over commits that attempt first.
    swept   the newest fence of a sweep. Attempts with a smaller one may have lost objects.
"""

import dataclasses
import logging
import os
import secrets
import socket
import threading
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

from m1.infra.canonical_json import canonical_json, parse_json
from m1.infra.clock import SYSTEM_CLOCK, Clock
from m1.infra.errors import (
    CorruptObjectError,
    LeaseHeldError,
    LeaseLostError,
    NotFoundError,
    PreconditionFailedError,
    StoreError,
)
from m1.infra.store.protocol import Store, StoredObject

_LOG = logging.getLogger(__name__)
_LOOK_SECONDS = 1.0
_FIELDS = {
    "fence", "token", "holder", "expires_at", "released", "term_seconds", "renewals", "sealed",
    "swept",
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """One process, told apart from a later one with the same number."""

    host: str
    process_id: int
    process_start: str
    boot_id: str
    label: str = ""


def current_holder(label: str = "") -> Holder:
    """This process."""
    return Holder(
        host=socket.gethostname(),
        process_id=os.getpid(),
        process_start=process_start(os.getpid()) or "",
        boot_id=_boot_id(),
        label=label,
    )


def process_start(process_id: int) -> str | None:
    """Kernel start time of a live process; None when it is gone or a zombie."""
    try:
        process = psutil.Process(process_id)
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        return Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[19]
    except (psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError):
        return None


class Lease:
    """A held lease; its keeper's thread and its holder's may both write."""

    def __init__(self, store: Store, key: str, *, record: dict[str, Any], clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._record = record
        self._etag = ""
        self._writing = threading.Lock()
        self.key = key
        self.fence: int = record["fence"]
        self.token: str = record["token"]
        self.term_seconds: float = record["term_seconds"]
        self.sealed: str = record["sealed"]
        self.swept: int = record["swept"]

    @classmethod
    def acquire(
        cls,
        store: Store,
        key: str,
        *,
        holder: Holder,
        clock: Clock = SYSTEM_CLOCK,
        term_seconds: float = 60.0,
        sweeping: bool = False,
    ) -> "Lease":
        """Take the lease, or raise LeaseHeldError; `sweeping` says that objects will be deleted.

        A dead holder on this host is replaced at once. Any other must be expired for a whole term
        by the wall clock, and silent for at least two thirds of a term while we watch: a live one
        renews within that time or stops, so a clock that jumped takes nothing. Where the clocks
        disagree by more than a term it must be silent for a whole one. Blocks for what is left.
        """
        found = _read(store, key)
        if found is not None:
            found = _await_free(store, key, found, holder=holder, clock=clock)
        fence = 1 if found is None else int(found[1]["fence"]) + 1
        record = {
            "fence": fence,
            "token": secrets.token_hex(16),
            "holder": dataclasses.asdict(holder),
            "expires_at": clock.wall_seconds() + term_seconds,
            "released": False,
            "term_seconds": term_seconds,
            "renewals": 0,
            "sealed": "" if found is None else found[1]["sealed"],
            "swept": fence if sweeping else 0 if found is None else found[1]["swept"],
        }
        lease = cls(store, key, record=record, clock=clock)
        try:
            body = canonical_json(record)
            if found is None:
                lease._etag = store.put_if_absent(key, body)
            else:
                lease._etag = store.put_if_match(key, body, etag=found[0].etag)
        except PreconditionFailedError as error:
            raise LeaseHeldError(
                key=key, holder="a rival", expires_in_seconds=term_seconds
            ) from error
        return lease

    def renew(self) -> None:
        """Push the expiry one term ahead; LeaseLostError when it is no longer ours."""
        expires_at = self._clock.wall_seconds() + self.term_seconds
        self._write(expires_at=expires_at, renewals=self._record["renewals"] + 1)

    def seal(self, attempt: str) -> None:
        """Name the attempt that is about to be committed; LeaseLostError when fenced off."""
        self._write(sealed=attempt)
        self.sealed = attempt

    def release(self) -> None:
        """Give the lease back; the object stays, so fencing numbers never repeat."""
        self._write(released=True)

    def check(self) -> None:
        """Read the object; LeaseLostError when it names another token."""
        found = _read(self._store, self.key)
        if found is None or found[1]["token"] != self.token or found[1]["released"]:
            raise LeaseLostError(f"{self.key}: fence {self.fence} is no longer ours")

    def _write(self, **changes: object) -> None:
        with self._writing:
            try:
                self._replace(changes)
            except PreconditionFailedError:
                self._catch_up()
                try:
                    self._replace(changes)
                except PreconditionFailedError as error:
                    raise self._lost() from error

    def _replace(self, changes: dict[str, object]) -> None:
        record = {**self._record, **changes}
        etag = self._store.put_if_match(self.key, canonical_json(record), etag=self._etag)
        self._etag, self._record = etag, record

    def _catch_up(self) -> None:
        """An earlier write of ours may have landed although its answer never came."""
        found = _read(self._store, self.key)
        if found is None or found[1]["token"] != self.token or found[1]["released"]:
            raise self._lost()
        self._etag, self._record = found[0].etag, found[1]

    def _lost(self) -> LeaseLostError:
        return LeaseLostError(f"{self.key}: fence {self.fence} was taken over")


class LeaseKeeper:
    """Renews a lease from a daemon thread; `lost` is set when that can no longer be proven."""

    def __init__(self, lease: Lease, *, clock: Clock = SYSTEM_CLOCK) -> None:
        self.lease = lease
        self.lost = threading.Event()
        self._clock = clock
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="lease-keeper", daemon=True)

    def __enter__(self) -> "LeaseKeeper":
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join(timeout=self.lease.term_seconds)

    def _keep(self) -> None:
        term_seconds = self.lease.term_seconds
        renewed_at = self._clock.monotonic_seconds()
        interval_seconds = term_seconds / 3
        while not self._stop.wait(interval_seconds):
            started_at = self._clock.monotonic_seconds()
            try:
                self.lease.renew()
                renewed_at, interval_seconds = started_at, term_seconds / 3
            except LeaseLostError:
                self.lost.set()
                return
            except StoreError:
                interval_seconds = term_seconds / 12
            if self._clock.monotonic_seconds() - renewed_at >= term_seconds * 2 / 3:
                self.lost.set()
                return


def _read(store: Store, key: str) -> tuple[StoredObject, dict[str, Any]] | None:
    try:
        found = store.get(key)
    except NotFoundError:
        return None
    record = parse_json(found.body)
    if isinstance(record, dict):
        record = {"sealed": "", "swept": 0, **record}  # leases of before these two existed
    if not isinstance(record, dict) or set(record) != _FIELDS:
        raise CorruptObjectError(f"{key} is not a lease")
    return found, record


def _await_free(
    store: Store,
    key: str,
    found: tuple[StoredObject, dict[str, Any]],
    *,
    holder: Holder,
    clock: Clock,
) -> tuple[StoredObject, dict[str, Any]]:
    """The version of the lease that may be replaced, else LeaseHeldError."""
    record = found[1]
    if _is_free(record, holder):
        return found
    name = _name(record)
    left_seconds = record["expires_at"] - clock.wall_seconds()
    term_seconds = record["term_seconds"]
    if 0 < left_seconds <= term_seconds:
        raise LeaseHeldError(key=key, holder=name, expires_in_seconds=left_seconds)
    # nobody can hold more than a term: beyond that one of the clocks is wrong, and neither counts
    wait_seconds = max(term_seconds + min(left_seconds, 0.0), term_seconds * 2 / 3)
    _LOG.warning(
        "%s is held by %s and expired %.0f s ago; watching %.0f s for a sign of life",
        key, name, -left_seconds, wait_seconds,
    )  # fmt: skip
    until = clock.monotonic_seconds() + wait_seconds
    while (left := until - clock.monotonic_seconds()) > 0:
        clock.sleep(min(left, _LOOK_SECONDS))
        again = _read(store, key)
        if again is None or again[0].etag != found[0].etag:
            return _changed(key, again, holder)
    return found


def _changed(
    key: str, again: tuple[StoredObject, dict[str, Any]] | None, holder: Holder
) -> tuple[StoredObject, dict[str, Any]]:
    """The lease was written while we watched: take it if it was given back."""
    if again is None:
        raise CorruptObjectError(f"{key} was deleted; fencing numbers must not start again")
    if _is_free(again[1], holder):
        return again
    raise LeaseHeldError(
        key=key, holder=_name(again[1]), expires_in_seconds=again[1]["term_seconds"]
    )


def _is_free(record: dict[str, Any], asking: Holder) -> bool:
    return bool(record["released"]) or _is_dead(Holder(**record["holder"]), asking)


def _name(record: dict[str, Any]) -> str:
    old = Holder(**record["holder"])
    return f"{old.label or 'process'} {old.process_id} on {old.host}"


def _is_dead(old: Holder, asking: Holder) -> bool:
    if (old.host, old.boot_id) != (asking.host, asking.boot_id):
        return False
    return process_start(old.process_id) != old.process_start


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
