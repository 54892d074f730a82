"""A lease has one holder, and its fencing number only grows."""

import dataclasses
import logging
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from m1.infra.errors import (
    CorruptObjectError,
    LeaseHeldError,
    LeaseLostError,
    StoreUnavailableError,
)
from m1.infra.lease import Lease, LeaseKeeper, current_holder
from m1.infra.store.local import LocalStore
from tests.fakes.memory_store import MemoryStore
from tests.fakes.virtual_clock import VirtualClock

HERE = current_holder("here")
AWAY = dataclasses.replace(HERE, host="elsewhere", label="away")


def test_release_raises_the_fence(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    first = Lease.acquire(store, "lease", holder=HERE)
    with pytest.raises(LeaseHeldError):
        Lease.acquire(store, "lease", holder=HERE)
    first.release()
    assert Lease.acquire(store, "lease", holder=HERE).fence == 2


def test_a_zombie_can_do_nothing_after_take_over() -> None:
    store, clock = MemoryStore(), VirtualClock()
    zombie = Lease.acquire(store, "lease", holder=AWAY, clock=clock)
    clock.advance(61)
    assert Lease.acquire(store, "lease", holder=HERE, clock=clock).fence == 2
    for action in (zombie.renew, zombie.check, zombie.release):
        with pytest.raises(LeaseLostError):
            action()


@pytest.mark.parametrize(
    ("expired_seconds", "waited_seconds"), [(0, 60), (15, 45), (40, 40), (59, 40), (100_000, 40)]
)
def test_take_over_waits_only_what_remains_and_says_so(
    caplog: pytest.LogCaptureFixture, expired_seconds: float, waited_seconds: float
) -> None:
    store, clock = MemoryStore(), VirtualClock()
    Lease.acquire(store, "lease", holder=AWAY, clock=clock)
    clock.advance(60 + expired_seconds)
    with caplog.at_level(logging.WARNING):
        Lease.acquire(store, "lease", holder=HERE, clock=clock)
    assert clock.slept_seconds == pytest.approx(waited_seconds)
    [record] = caplog.records
    assert "away" in record.getMessage()
    assert f"watching {waited_seconds:.0f} s" in record.getMessage()


def test_a_clock_that_jumped_takes_nothing_from_a_live_holder() -> None:
    store, clock = MemoryStore(), VirtualClock()
    lease = Lease.acquire(store, "lease", holder=AWAY, clock=clock)
    clock.jump(1_000_000)
    beats = iter(range(1, 1000))
    clock.on_sleep = lambda: lease.renew() if next(beats) % 19 == 0 else None
    with pytest.raises(LeaseHeldError, match="away"):
        Lease.acquire(store, "lease", holder=HERE, clock=clock)
    lease.check()


def test_a_holder_whose_clock_was_hours_ahead_does_not_block_for_hours() -> None:
    store, clock = MemoryStore(), VirtualClock(wall_seconds=10_000.0)
    ahead = VirtualClock(wall_seconds=20_000.0)
    Lease.acquire(store, "lease", holder=AWAY, clock=ahead)

    assert Lease.acquire(store, "lease", holder=HERE, clock=clock).fence == 2
    assert clock.slept_seconds == pytest.approx(60)


def test_a_live_holder_whose_clock_is_hours_ahead_keeps_its_lease() -> None:
    store, clock = MemoryStore(), VirtualClock(wall_seconds=10_000.0)
    ahead = VirtualClock(wall_seconds=20_000.0)
    lease = Lease.acquire(store, "lease", holder=AWAY, clock=ahead)
    beats = iter(range(1, 1000))
    clock.on_sleep = lambda: lease.renew() if next(beats) % 21 == 0 else None

    with pytest.raises(LeaseHeldError, match="away"):
        Lease.acquire(store, "lease", holder=HERE, clock=clock)
    lease.check()


def test_a_renewal_whose_answer_was_lost_is_still_ours() -> None:
    store, clock = MemoryStore(), VirtualClock()
    lease = Lease.acquire(store, "lease", holder=HERE, clock=clock)
    put_if_match = store.put_if_match

    def deliver_then_fail(key: str, body: bytes, *, etag: str) -> str:
        put_if_match(key, body, etag=etag)
        store.put_if_match = put_if_match  # type: ignore[method-assign]
        raise StoreUnavailableError("the answer was lost")

    store.put_if_match = deliver_then_fail  # type: ignore[method-assign]
    with pytest.raises(StoreUnavailableError):
        lease.renew()
    lease.renew()
    lease.seal("0001-aaaaaaaa")
    lease.release()

    assert Lease.acquire(store, "lease", holder=HERE).sealed == "0001-aaaaaaaa"


def test_what_was_sealed_and_swept_outlives_the_holders() -> None:
    store, clock = MemoryStore(), VirtualClock()
    first = Lease.acquire(store, "lease", holder=HERE, clock=clock)
    first.seal("0001-aaaaaaaa")
    first.release()
    Lease.acquire(store, "lease", holder=HERE, clock=clock, sweeping=True).release()

    third = Lease.acquire(store, "lease", holder=HERE, clock=clock)

    assert (third.fence, third.sealed, third.swept) == (3, "0001-aaaaaaaa", 2)


def test_a_holder_that_was_fenced_off_cannot_seal() -> None:
    store, clock = MemoryStore(), VirtualClock()
    zombie = Lease.acquire(store, "lease", holder=AWAY, clock=clock)
    clock.advance(61)
    Lease.acquire(store, "lease", holder=HERE, clock=clock)

    with pytest.raises(LeaseLostError):
        zombie.seal("0001-aaaaaaaa")


def test_a_release_is_noticed_while_waiting() -> None:
    store, clock = MemoryStore(), VirtualClock()
    lease = Lease.acquire(store, "lease", holder=AWAY, clock=clock)
    clock.advance(61)
    clock.on_sleep = lease.release
    assert Lease.acquire(store, "lease", holder=HERE, clock=clock).fence == 2
    assert clock.slept_seconds == 1


def test_a_held_lease_answers_at_once_with_who_and_how_long() -> None:
    store, clock = MemoryStore(), VirtualClock()
    Lease.acquire(store, "lease", holder=AWAY, clock=clock)
    clock.advance(20)
    with pytest.raises(LeaseHeldError, match="away") as caught:
        Lease.acquire(store, "lease", holder=HERE, clock=clock)
    assert caught.value.expires_in_seconds == pytest.approx(40)
    assert clock.slept_seconds == 0


def test_another_process_with_the_same_number_is_not_the_holder() -> None:
    store, clock = MemoryStore(), VirtualClock()
    gone = dataclasses.replace(HERE, process_start="1")
    Lease.acquire(store, "lease", holder=gone, clock=clock)
    assert Lease.acquire(store, "lease", holder=HERE, clock=clock).fence == 2
    assert clock.slept_seconds == 0


def test_a_killed_holder_on_this_host_is_replaced_at_once(tmp_path: Path) -> None:
    script = (
        "import sys, time, pathlib\n"
        "from m1.infra.lease import Lease, current_holder\n"
        "from m1.infra.store.local import LocalStore\n"
        "Lease.acquire(LocalStore(pathlib.Path(sys.argv[1])), 'lease', holder=current_holder())\n"
        "print('held', flush=True)\n"
        "time.sleep(600)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        store = LocalStore(tmp_path)
        with pytest.raises(LeaseHeldError):
            Lease.acquire(store, "lease", holder=HERE)
        process.kill()
        process.wait()
    started = time.monotonic()
    assert Lease.acquire(store, "lease", holder=HERE).fence == 2
    assert time.monotonic() - started < 1.0


def test_sixteen_takers_have_one_winner() -> None:
    store, clock = MemoryStore(), VirtualClock()
    Lease.acquire(store, "lease", holder=HERE, clock=clock).release()
    fences: list[int] = []
    barrier = threading.Barrier(16)

    def take() -> None:
        barrier.wait()
        try:
            fences.append(Lease.acquire(store, "lease", holder=HERE, clock=clock).fence)
        except LeaseHeldError:
            fences.append(0)

    threads = [threading.Thread(target=take) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(fences) == [0] * 15 + [2]


@pytest.mark.parametrize("body", [b"", b"{}", b"[]", b'{"fence":1}', b"\xff"])
def test_a_torn_lease_is_corrupt_not_free(body: bytes) -> None:
    store = MemoryStore()
    store.put("lease", body)
    with pytest.raises(CorruptObjectError):
        Lease.acquire(store, "lease", holder=HERE)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(st.integers(0, 2), st.sampled_from(["acquire", "renew", "release"]),
                          st.floats(0, 200)), max_size=20))  # fmt: skip
def test_fences_grow_and_only_the_newest_may_write(
    steps: list[tuple[int, str, float]],
) -> None:
    store, clock = MemoryStore(), VirtualClock()
    held: dict[int, Lease] = {}
    fences: list[int] = []
    for who, action, seconds in steps:
        clock.advance(seconds)
        holder = dataclasses.replace(HERE, host=f"host-{who}")
        try:
            if action == "acquire":
                held[who] = Lease.acquire(store, "lease", holder=holder, clock=clock)
                fences.append(held[who].fence)
            elif who in held:
                getattr(held[who], action)()
                assert held[who].fence == fences[-1]
                if action == "release":
                    del held[who]
        except (LeaseHeldError, LeaseLostError):
            continue
    assert fences == list(range(1, len(fences) + 1))


def test_the_keeper_renews_until_it_is_left() -> None:
    store = MemoryStore()
    lease = Lease.acquire(store, "lease", holder=HERE, term_seconds=0.3)
    with LeaseKeeper(lease) as keeper:
        time.sleep(0.8)
        assert not keeper.lost.is_set()
        lease.check()
    etag = store.get("lease").etag
    time.sleep(0.3)
    assert store.get("lease").etag == etag


def test_the_keeper_notices_a_take_over() -> None:
    store = MemoryStore()
    lease = Lease.acquire(store, "lease", holder=HERE, term_seconds=0.3)
    with LeaseKeeper(lease) as keeper:
        store.put("lease", b"somebody else")
        assert keeper.lost.wait(5)


def test_the_keeper_gives_up_before_the_term_ends_when_the_store_is_away() -> None:
    def away(_action: str, _key: str) -> None:
        raise StoreUnavailableError("away")

    store = MemoryStore()
    lease = Lease.acquire(store, "lease", holder=HERE, term_seconds=3.0)
    with LeaseKeeper(lease) as keeper:
        store.before = away
        started = time.monotonic()
        assert keeper.lost.wait(10)
        assert 1.9 < time.monotonic() - started < 3.0


def test_the_keeper_survives_a_short_outage() -> None:
    outage = iter([True, True])

    def flaky(action: str, _key: str) -> None:
        if action == "put" and next(outage, False):
            raise StoreUnavailableError("for a moment")

    store = MemoryStore()
    lease = Lease.acquire(store, "lease", holder=HERE, term_seconds=3.0)
    store.before = flaky
    with LeaseKeeper(lease) as keeper:
        assert not keeper.lost.wait(2.5)
    assert b'"renewals":0' not in store.get("lease").body
