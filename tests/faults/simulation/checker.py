"""What must hold at every change of the store, whatever goes wrong. Sees all, touches nothing."""

import json
from typing import Any

from m1.infra.canonical_json import sha256_hex
from m1.infra.manifest import Commit
from m1.infra.names import attempt_prefix
from m1.stages.checkpoints import RECORD_NAME, CheckpointRecord
from tests.faults.simulation.jobs import Job
from tests.faults.simulation.service import Held, Service
from tests.faults.simulation.world import Process, World

SWEEPER = "gc"


class Checker:
    """Collects violations, each a sentence."""

    def __init__(self, world: World, service: Service) -> None:
        self.violations: list[str] = []
        self._world = world
        self._service = service
        self._commits: dict[str, Commit] = {}  # by stage folder
        self._holders: dict[str, int] = {}  # stage folder -> process that took the lease last
        self._begun: dict[str, set[int]] = {}  # stage folder -> processes that watch an attempt
        self._jobs: dict[str, Job] = {}  # by attempt prefix
        service.watch = self.on_change

    def on_watch(self, flow: Process, job: Job) -> None:
        """A flow started or adopted a job."""
        spec = job.spec
        prefix = attempt_prefix(spec.run, spec.stage, spec.attempt)
        self._jobs[prefix] = job
        self._begun.setdefault(prefix.split("attempts/")[0], set()).add(flow.number)

    def on_change(
        self, process: Process | None, key: str, old: Held | None, new: Held | None
    ) -> None:
        """An object was written or deleted."""
        folder, _, name = key.rpartition("/")
        folder += "/"
        if name == "commit.json":
            self._commit(process, folder, old, new)
        elif name == "lease.json":
            self._lease(process, folder, old, new)
        elif "/attempts/" in key:
            self._attempt_object(process, key, old, new)

    def _violated(self, text: str) -> None:
        self.violations.append(f"at {self._world.now:.1f} s: {text}")

    # ---- commits -------------------------------------------------------------------------------

    def _commit(
        self, process: Process | None, folder: str, old: Held | None, new: Held | None
    ) -> None:
        if new is None or old is not None:
            self._violated(f"{folder}commit.json was {'replaced' if new else 'deleted'}")
            return
        commit = Commit.from_bytes(new.body)
        self._commits[folder] = commit
        prefix = f"{folder}attempts/{commit.attempt}/"
        for entry in commit.objects:
            held = self._service.objects.get(prefix + entry.key)
            if held is None or sha256_hex(held.body) != entry.sha256:
                self._violated(f"{folder}commit.json names {entry.key}, which is not there")
        holder = self._holders.get(folder)
        rivals = self._begun.get(folder, set())
        if process is not None and process.number != holder and holder in rivals:
            self._violated(
                f"{process.label} committed {commit.attempt} after another had taken over and begun"
            )

    def _lease(
        self, process: Process | None, folder: str, old: Held | None, new: Held | None
    ) -> None:
        if new is None:
            self._violated(f"{folder}lease.json was deleted")
            return
        before: dict[str, Any] | None = json.loads(old.body) if old else None
        after: dict[str, Any] = json.loads(new.body)
        if before is not None and after["token"] == before["token"]:
            if before["released"] and not after["released"]:
                self._violated(f"{folder}lease.json came back after its release")
            return
        expected = 1 if before is None else before["fence"] + 1
        if after["fence"] != expected:
            self._violated(f"{folder}lease.json went to fence {after['fence']}, not {expected}")
        self._holders[folder] = process.number if process else -1
        self._begun.setdefault(folder, set()).discard(self._holders[folder])

    # ---- objects of attempts -------------------------------------------------------------------

    def _attempt_object(
        self, process: Process | None, key: str, old: Held | None, new: Held | None
    ) -> None:
        folder = key.split("attempts/")[0]
        attempt = key.split("/")[4]
        commit = self._commits.get(folder)
        named = commit is not None and commit.attempt == attempt and self._names(commit, key)
        if named and (new is None or (old is not None and old.body != new.body)):
            self._violated(f"{key} was {'replaced' if new else 'deleted'} after its commit")
        if new is None and process is not None and process.label.startswith(SWEEPER):
            self._swept(process, folder, attempt, key, old)

    def _names(self, commit: Commit, key: str) -> bool:
        own = key.split("/", 5)[5]
        return any(entry.key == own for entry in commit.objects)

    def _swept(
        self, process: Process, folder: str, attempt: str, key: str, old: Held | None
    ) -> None:
        if folder in self._commits:
            return
        job = self._jobs.get(f"{folder}attempts/{attempt}/")
        holder = self._holders.get(folder)
        if job is not None and not job.ended.is_set() and holder in job.watchers:
            self._violated(f"a sweep deleted {key} of an attempt that is watched and alive")
        if old is not None and key.endswith(f"/{RECORD_NAME}") and self._was_last(folder, key, old):
            self._violated(f"a sweep deleted {key}, the newest whole checkpoint")

    def _was_last(self, folder: str, key: str, old: Held) -> bool:
        """Whether the record that was just deleted was the only whole checkpoint as far on."""
        objects = self._service.objects
        gone = CheckpointRecord.from_bytes(old.body)
        if not self._is_whole(key, gone):
            return False
        for other, held in objects.items():
            if other.startswith(folder) and other.endswith(f"/{RECORD_NAME}"):
                record = CheckpointRecord.from_bytes(held.body)
                if record.step >= gone.step and self._is_whole(other, record):
                    return False
        return True

    def _is_whole(self, key: str, record: CheckpointRecord) -> bool:
        prefix = key.removesuffix(RECORD_NAME)
        return all(prefix + entry.key in self._service.objects for entry in record.objects)
