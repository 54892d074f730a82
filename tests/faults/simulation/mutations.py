"""Ways to break the protocol that the checker must notice. Each is one promise taken away."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from unittest import mock

import m1.flows.attempt
import m1.flows.stage_run
import m1.flows.sweep
from m1.flows.effects import RunEffects
from m1.flows.stage_plan import StagePlan
from m1.infra.clock import Clock
from m1.infra.lease import Lease
from m1.infra.store.protocol import ObjectSummary, Store
from tests.faults.simulation.service import Service


def store_that_always_creates() -> AbstractContextManager[object]:
    """`If-None-Match` is ignored, as some S3 servers do."""
    return mock.patch.object(Service, "honours_if_none_match", new=False)


def store_that_always_replaces() -> AbstractContextManager[object]:
    """`If-Match` is ignored."""
    return mock.patch.object(Service, "honours_if_match", new=False)


@contextmanager
def commit_after_a_look_at_the_lease() -> Iterator[None]:
    """Check that the lease is ours, then commit: whoever stands still in between is a zombie."""

    def look(lease: Lease, _attempt: str) -> None:
        lease.check()

    with mock.patch.object(Lease, "seal", look):
        yield


@contextmanager
def take_over_without_settling() -> Iterator[None]:
    """What the last holder sealed is not committed before new work begins."""

    def nothing(_effects: RunEffects, _plan: StagePlan, _lease: Lease) -> None:
        return None

    with mock.patch.object(m1.flows.stage_run, "_settle", nothing):
        yield


@contextmanager
def sweep_without_a_lease() -> Iterator[None]:
    """A sweep deletes below somebody who works."""

    def sweep(
        store: Store, run: str, stage: str, *, clock: Clock, before_seconds: float
    ) -> list[ObjectSummary]:
        doomed = m1.flows.sweep._doomed(store, run, stage, before_seconds, "")
        return m1.flows.sweep._delete(store, doomed)

    with mock.patch.object(m1.flows.sweep, "_sweep_leased", sweep):
        yield


@contextmanager
def sweep_that_forgets_what_is_sealed() -> Iterator[None]:
    """An attempt that may still be committed is swept."""
    doomed = m1.flows.sweep._doomed

    def forgetful(
        store: Store, run: str, stage: str, before_seconds: float, _sealed: str
    ) -> list[ObjectSummary]:
        return doomed(store, run, stage, before_seconds, "")

    with mock.patch.object(m1.flows.sweep, "_doomed", forgetful):
        yield


@contextmanager
def commit_without_a_look_at_the_objects() -> Iterator[None]:
    """The word of a job is enough."""

    def trusting(*_: object, **__: object) -> list[str]:
        return []

    with mock.patch.object(m1.flows.attempt, "verify_objects", trusting):
        yield


MUTATIONS: tuple[Callable[[], AbstractContextManager[object]], ...] = (
    store_that_always_creates,
    store_that_always_replaces,
    commit_after_a_look_at_the_lease,
    take_over_without_settling,
    sweep_without_a_lease,
    sweep_that_forgets_what_is_sealed,
    commit_without_a_look_at_the_objects,
)
