"""Whole stages under a parallel layout learn what one rank learns, and the model comes out."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.integration import tiny

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SHARED = {"model.num_key_value_heads": 2, "run.order": "curate,pretrain,reinforce-40k,export"}
LAYOUTS = {
    "tensor": {"layout.processes_per_node": 2, "layout.tensor": 2},
    "context": {"layout.processes_per_node": 2, "layout.context": 2, "layout.expert": 2},
}


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.corpus(tmp_path_factory.mktemp("corpus") / "documents")


def metrics(place: tiny.Place, run: str) -> dict[str, Mapping[str, Any]]:
    status = json.loads(place.m1("status", run, "--json").stdout)
    return {stage["name"]: stage["metrics"] for stage in status["stages"]}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, documents: Path) -> Mapping[str, Any]:
    """What pretraining measures on one rank."""
    place = tiny.Place(home=tmp_path_factory.mktemp("alone"))
    one = {**SHARED, "layout.processes_per_node": 1, "run.order": "curate,pretrain"}
    place.m1("run", "--run", "one", *tiny.settings(documents, **one))
    return metrics(place, "one")["pretrain"]


@pytest.mark.parametrize("name", LAYOUTS)
def test_stages_learn_the_same_and_export_the_model(
    name: str, alone: Mapping[str, Any], documents: Path, tmp_path: Path
) -> None:
    place = tiny.Place(home=tmp_path)

    place.m1("run", "--run", "many", *tiny.settings(documents, **SHARED, **LAYOUTS[name]))

    found = metrics(place, "many")
    for metric in ("loss_first", "loss_last", "heldout_loss_before", "heldout_loss"):
        assert found["pretrain"][metric] == pytest.approx(alone[metric], abs=1e-5)
    assert found["reinforce-40k"]["reward_last"] is not None
    assert found["export"]["largest_logit_difference"] < 1e-5
