"""Every stage for real, through the command a person types: on a directory and on S3."""

import json
from pathlib import Path

import pytest

from m1.stages.registry import DEFAULT_ORDER
from tests.integration import tiny
from tests.s3_server import S3Server

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.corpus(tmp_path_factory.mktemp("corpus") / "documents")


@pytest.fixture(scope="module", params=["directory", "s3"])
def finished(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, documents: Path
) -> tiny.Place:
    """A run that went from the first stage to the last."""
    home = tmp_path_factory.mktemp("home")
    if request.param == "directory":
        place = tiny.Place(home=home)
    else:
        server: S3Server = request.getfixturevalue("s3_server")
        place = tiny.Place(
            home=home, store=f"s3://{server.bucket}/whole", credentials=server.environment
        )
    place.m1("run", "--run", "whole", *tiny.settings(documents))
    return place


def test_every_stage_is_committed_with_what_it_did(finished: tiny.Place) -> None:
    status = json.loads(finished.m1("status", "whole", "--json").stdout)

    stages = {stage["name"]: stage for stage in status["stages"]}
    assert tuple(stages) == DEFAULT_ORDER
    assert {stage["state"] for stage in stages.values()} == {"committed"}
    assert stages["pretrain"]["steps"] == 8
    assert stages["pretrain"]["metrics"]["loss_last"] < stages["pretrain"]["metrics"]["loss_first"]
    assert stages["reinforce-40k"]["tokens"] > 0
    assert stages["export"]["metrics"]["largest_logit_difference"] < 1e-3


def test_a_committed_run_is_answered_from_the_store(finished: tiny.Place, documents: Path) -> None:
    again = finished.m1("run", "--run", "whole", *tiny.settings(documents))

    assert again.returncode == 0
    assert "attempt" not in again.stdout


def test_everything_committed_has_the_recorded_digests(finished: tiny.Place) -> None:
    assert finished.m1("verify", "whole").returncode == 0


def test_the_model_answers_and_says_how_sure_it_was(finished: tiny.Place) -> None:
    done = finished.m1("generate", "whole", "3>4=?", "--json")

    answer = json.loads(done.stdout)
    assert len(answer["token_ids"]) == len(answer["logprobs"]) > 0
    assert all(value <= 0.0 for value in answer["logprobs"])


def test_the_exported_folder_and_the_report_are_there(finished: tiny.Place, tmp_path: Path) -> None:
    finished.m1("export", "whole", str(tmp_path / "model"))
    finished.m1("report", "whole", "-o", str(tmp_path / "report.html"))

    names = {path.name for path in (tmp_path / "model").iterdir()}
    assert {"config.json", "tokenizer.json", "generation_config.json"} <= names
    assert any(name.endswith(".safetensors") for name in names)
    assert "<svg" in (tmp_path / "report.html").read_text()
