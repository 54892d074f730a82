"""A lease has one holder, and its fencing number only grows."""

import dataclasses
from pathlib import Path

import pytest

from m1.infra.errors import LeaseHeldError, LeaseLostError
from m1.infra.lease import Lease, current_holder
from m1.infra.store.local import LocalStore


class VirtualClock:
    def __init__(self) -> None:
        self.now = 1000.0

    def wall_seconds(self) -> float:
        return self.now

    def monotonic_seconds(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_release_raises_the_fence(tmp_path: Path) -> None:
    store, holder = LocalStore(tmp_path), current_holder()
    first = Lease.acquire(store, "lease", holder=holder)
    with pytest.raises(LeaseHeldError):
        Lease.acquire(store, "lease", holder=holder)
    first.release()
    assert Lease.acquire(store, "lease", holder=holder).fence == 2


def test_a_zombie_cannot_renew_after_take_over(tmp_path: Path) -> None:
    store, clock, holder = LocalStore(tmp_path), VirtualClock(), current_holder()
    away = dataclasses.replace(holder, host="elsewhere")
    zombie = Lease.acquire(store, "lease", holder=away, clock=clock)
    clock.sleep(61)
    assert Lease.acquire(store, "lease", holder=holder, clock=clock).fence == 2
    for action in (zombie.renew, zombie.check, zombie.release):
        with pytest.raises(LeaseLostError):
            action()
