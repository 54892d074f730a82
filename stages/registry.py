"""Which stages exist: name -> kind, settings class, module, parents. Imports no torch."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from m1.infra.errors import InvalidSettingError
from m1.stages.settings import (
    CurateSettings,
    EvaluateSettings,
    ExportSettings,
    ExtendSettings,
    PretrainSettings,
    ReinforceSettings,
    SftSettings,
    StageSettings,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class StageKind:
    """One kind of stage.

    `version` enters every fingerprint of the kind: raise it when the meaning of the code changes.
    """

    name: str
    pattern: str
    version: int
    module: str
    settings: type[StageSettings]
    gives_weights: bool
    needs_all_weights: bool = False
    single_process: bool = False  # ranks would do the same work over one another's files

    def matches(self, stage: str) -> bool:
        """Whether `stage` is a stage of this kind."""
        return re.fullmatch(self.pattern, stage) is not None


KINDS = (
    StageKind(
        name="curate",
        pattern="curate",
        version=2,
        module="m1.stages.curate",
        settings=CurateSettings,
        gives_weights=False,
        single_process=True,
    ),
    StageKind(
        name="pretrain",
        pattern="pretrain",
        version=1,
        module="m1.stages.pretrain",
        settings=PretrainSettings,
        gives_weights=True,
    ),
    StageKind(
        name="sft",
        pattern="sft",
        version=1,
        module="m1.stages.sft",
        settings=SftSettings,
        gives_weights=True,
    ),
    StageKind(
        name="extend",
        pattern=r"extend-[a-z0-9]+",
        version=1,
        module="m1.stages.extend_context",
        settings=ExtendSettings,
        gives_weights=True,
    ),
    StageKind(
        name="reinforce",
        pattern=r"reinforce-[a-z0-9]+",
        version=1,
        module="m1.stages.reinforce",
        settings=ReinforceSettings,
        gives_weights=True,
    ),
    StageKind(
        name="evaluate",
        pattern="evaluate",
        version=2,
        module="m1.stages.evaluate",
        settings=EvaluateSettings,
        gives_weights=False,
        needs_all_weights=True,
    ),
    StageKind(
        name="export",
        pattern="export",
        version=1,
        module="m1.stages.export",
        settings=ExportSettings,
        gives_weights=False,
    ),
)

DEFAULT_ORDER = (
    "curate",
    "pretrain",
    "sft",
    "extend-32k",
    "extend-128k",
    "extend-512k",
    "extend-1m",
    "reinforce-40k",
    "reinforce-80k",
    "evaluate",
    "export",
)


def kind_of(stage: str) -> StageKind:
    """The kind of a stage.

    Raises:
        InvalidSettingError: no kind has this name.
    """
    for kind in KINDS:
        if kind.matches(stage):
            return kind
    raise InvalidSettingError(field="stage", value=stage, accepted=", ".join(DEFAULT_ORDER))


def parents_of(stage: str, order: Sequence[str]) -> tuple[str, ...]:
    """The stages whose commits `stage` reads, given the order of the run.

    Every stage but curate reads the corpus (curate); a stage on weights reads the last earlier
    stage that gives weights; evaluate reads all of them.
    """
    earlier = list(order[: order.index(stage)])
    weights = [name for name in earlier if kind_of(name).gives_weights]
    if not kind_of(stage).needs_all_weights:
        weights = weights[-1:]
    corpus = [name for name in earlier if kind_of(name).name == "curate"]
    return tuple(corpus + weights)
