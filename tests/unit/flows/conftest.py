"""Fixtures of the flow tests: a small preset, a store in a folder, the real local launcher."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from m1.flows.effects import RunEffects, SilentReporter
from m1.flows.preset import Preset, load_preset
from m1.flows.run_record import RunRecord, save_record
from m1.infra.launch.local import LocalLauncher
from m1.infra.store.local import LocalStore
from tests.fakes.direct_launcher import DirectLauncher

FAKES = Path(__file__).parents[2] / "fakes"


class RecordingReporter(SilentReporter):
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.steps: list[int] = []
        self.reused: list[str] = []

    def note(self, stage, text):
        self.notes.append(f"{stage}: {text}")

    def progress(self, stage, progress):
        self.steps.append(progress.step)

    def committed(self, stage, commit, *, reused):
        if reused:
            self.reused.append(stage)


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "store")


@pytest.fixture
def preset() -> Preset:
    return load_preset("toy", ["run.order=[curate, pretrain, sft, reinforce-40k, export]"])


@pytest.fixture
def record(store: LocalStore, preset: Preset) -> RunRecord:
    return save_record(
        store,
        RunRecord(run="r1", preset=preset, created_at="2026-01-01T00:00:00+00:00", versions={}),
    )


@pytest.fixture
def effects(
    store: LocalStore, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[Callable[..., RunEffects]]:
    """`effects(pretrain=["crash", "ok"])`: effects whose jobs end as the script says."""

    built: list[RunEffects] = []

    def build(**endings: list[str]) -> RunEffects:
        script = {stage.replace("_", "-"): {"endings": e} for stage, e in endings.items()}
        built.append(
            RunEffects(
                store=store,
                launcher=DirectLauncher() if "direct" in request.fixturenames else LocalLauncher(),
                work_root=tmp_path / "work",
                reporter=RecordingReporter(),
                environment=fake_environment(script),
                module="fake_worker",
                poll_seconds=0.05,
            )
        )
        return built[-1]

    yield build
    for outside in built:
        outside.launcher.close()


def fake_environment(script: object) -> dict[str, str]:
    path = os.pathsep.join([str(FAKES), os.environ.get("PYTHONPATH", "")]).strip(os.pathsep)
    return {"M1_FAKE": json.dumps(script), "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


@pytest.fixture
def direct() -> None:
    """Named by a test whose jobs need no torchrun."""
