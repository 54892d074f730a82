"""The form of the dashboard and the arguments of `m1 run`, as one validated thing. Runs nothing."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from m1.flows.preset import split_override
from m1.infra.names import parse_run_id

PresetName = Literal["toy", "gpu", "full"]


class RunParameters(BaseModel):
    """What every flow asks for."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    preset: PresetName | None = Field(
        "toy", description="Size of everything. Empty: the settings the run was started with."
    )
    run: str | None = Field(
        None,
        description="Run id: lower-case letters, digits and dashes. Empty: a new run. "
        "An existing id goes on where that run stopped.",
    )
    store: str | None = Field(
        None, description="file:///folder or s3://bucket/prefix. Empty: the store of the worker."
    )
    overrides: list[str] = Field(
        default_factory=list,
        description="Settings to change, such as pretrain.learning_rate=1e-3 or run.seed=3.",
    )
    force: list[str] = Field(
        default_factory=list,
        description="Stages that start from their first step, ignoring checkpoints. "
        "A committed stage is never done again: fork the run instead.",
    )

    @field_validator("run")
    @classmethod
    def _run_id(cls, value: str | None) -> str | None:
        return parse_run_id(value) if value else None

    @field_validator("overrides")
    @classmethod
    def _override_form(cls, value: list[str]) -> list[str]:
        for text in value:
            split_override(text)
        return value


class PipelineParameters(RunParameters):
    """The whole pipeline, or a part of it."""

    from_stage: str | None = Field(
        None, description="First stage to run; the ones before must be committed."
    )
    until_stage: str | None = Field(None, description="Last stage to run.")


class StageParameters(RunParameters):
    """One stage."""

    stage: str = Field(description="Name of the stage, such as reinforce-40k.")
    with_parents: bool = Field(False, description="Run missing parents first.")
