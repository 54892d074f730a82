"""Which stages exist and what each one reads."""

import pytest

from m1.infra.errors import InvalidSettingError
from m1.stages.registry import DEFAULT_ORDER, kind_of, parents_of

PAPER_ORDER = (
    "curate",
    "pretrain",
    "extend-32k",
    "extend-1m",
    "sft",
    "reinforce-40k",
    "evaluate",
    "export",
)


@pytest.mark.parametrize(
    ("stage", "parents"),
    [
        pytest.param("curate", (), id="curate-reads-nothing"),
        pytest.param("pretrain", ("curate",), id="pretrain-reads-the-corpus"),
        pytest.param("sft", ("curate", "pretrain"), id="sft-goes-on-from-pretrain"),
        pytest.param("extend-32k", ("curate", "sft"), id="extension-after-sft"),
        pytest.param("reinforce-80k", ("curate", "reinforce-40k"), id="second-rl-after-first"),
        pytest.param("export", ("curate", "reinforce-80k"), id="export-the-last-weights"),
    ],
)
def test_a_stage_reads_the_corpus_and_the_last_weights(
    stage: str, parents: tuple[str, ...]
) -> None:
    assert parents_of(stage, DEFAULT_ORDER) == parents


def test_evaluate_reads_the_weights_of_every_stage_before_it() -> None:
    weights = tuple(name for name in DEFAULT_ORDER[:-2])

    assert parents_of("evaluate", DEFAULT_ORDER) == weights


def test_another_order_gives_another_graph() -> None:
    assert parents_of("sft", PAPER_ORDER) == ("curate", "extend-1m")
    assert parents_of("extend-32k", PAPER_ORDER) == ("curate", "pretrain")


def test_an_unknown_stage_is_named_with_what_is_accepted() -> None:
    with pytest.raises(InvalidSettingError, match=r"stage = 'pretrian'.*pretrain"):
        kind_of("pretrian")
