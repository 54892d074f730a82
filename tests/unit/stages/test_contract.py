"""What a job is told and answers survives the way through JSON."""

import pytest

from m1.infra.errors import CorruptObjectError
from m1.infra.manifest import ObjectEntry
from m1.stages.contract import (
    Identity,
    ParentRef,
    Progress,
    ResumePoint,
    StageResult,
    StageSpec,
)

SPEC = StageSpec(
    run="toy",
    stage="sft",
    fingerprint="ab" * 32,
    attempt="0002-1f2e3d4c",
    fence=2,
    store_url="file:///somewhere",
    seed=1,
    order=("curate", "pretrain", "sft"),
    settings={"steps": 3, "learning_rate": 1e-3},
    all_settings={"sft": {"steps": 3}},
    model={"num_layers": 2},
    layout={"nodes": 1},
    parents={"curate": ParentRef(attempt="0001-aa", digest="cd" * 32)},
    resume=ResumePoint(attempt="0001-bb", step=40, record_sha256="ef" * 32),
)


def identity(**changes: object) -> Identity:
    fields = {
        "stage": "sft",
        "kind_version": 1,
        "settings": {"steps": 3},
        "model": {"num_layers": 2},
        "seed": 1,
        "recipe_digest": None,
        "parents": {"curate": "cd" * 32},
    }
    return Identity(**(fields | changes))  # type: ignore[arg-type]


def test_a_spec_survives_json() -> None:
    assert StageSpec.from_bytes(SPEC.to_bytes()) == SPEC


def test_a_spec_of_another_version_is_refused() -> None:
    body = SPEC.to_bytes().replace(b'"spec_version":1', b'"spec_version":2')

    with pytest.raises(CorruptObjectError, match="version 1"):
        StageSpec.from_bytes(body)


def test_a_result_survives_json() -> None:
    result = StageResult(
        fingerprint="ab" * 32,
        attempt="0002-1f2e3d4c",
        fence=2,
        objects=(ObjectEntry(key="outputs/x", size_bytes=3, sha256="00" * 32),),
        metrics={"loss_last": 1.5},
        versions={"torch": "2.13.0"},
        steps=3,
        tokens=30,
        seconds=1.25,
    )

    assert StageResult.from_bytes(result.to_bytes()) == result


def test_progress_survives_json() -> None:
    progress = Progress(
        stage="sft", attempt="a", phase="training", step=1, samples=({"text": "3>4=4"},)
    )

    assert Progress.from_bytes(progress.to_bytes()) == progress


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"settings": {"steps": 4}}, id="a-setting"),
        pytest.param({"model": {"num_layers": 3}}, id="the-model"),
        pytest.param({"seed": 2}, id="the-seed"),
        pytest.param({"kind_version": 2}, id="the-meaning-of-the-code"),
        pytest.param({"recipe_digest": "12"}, id="the-recipe"),
        pytest.param({"parents": {"curate": "00" * 32}}, id="a-parent"),
    ],
)
def test_whatever_the_result_depends_on_changes_the_fingerprint(changes: dict[str, object]) -> None:
    assert identity(**changes).fingerprint() != identity().fingerprint()


def test_equal_identities_have_equal_fingerprints() -> None:
    assert identity().fingerprint() == identity().fingerprint()
