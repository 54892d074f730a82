"""The whole graph on one page: which stage follows which, as Prefect flows.

    curate -> pretrain -> sft -> extend-* -> reinforce-* -> evaluate -> export

The order comes from the run's preset; the edges come from `parents_of`. Prefect shows and
schedules; it remembers nothing that matters. A stage that is committed in the store is skipped,
so a retry, a resume and an empty Prefect database all go on at the same place.
"""

from dataclasses import replace
from typing import Any

from prefect import flow
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.tasks import Task

from m1.flows.dashboard import DashboardReporter, publish_summary
from m1.flows.effects import Reporters, RunEffects
from m1.flows.parameters import PipelineParameters, StageParameters
from m1.flows.prepare import PreparedRun, prepare
from m1.flows.stage_run import run_stage
from m1.infra.manifest import Commit
from m1.stages.registry import parents_of


@flow(name="pipeline", retries=0, persist_result=False, validate_parameters=True)
def pipeline(parameters: PipelineParameters) -> str:
    """Raw documents to a reasoning model: every stage of the run, in order.

    Args:
        parameters: what to run, where, and with which settings.
    """
    return run_graph(prepare(parameters))


@flow(name="stage", retries=0, persist_result=False, validate_parameters=True)
def stage(parameters: StageParameters) -> str:
    """One stage, with its parents if asked.

    Args:
        parameters: which stage of which run.
    """
    return run_graph(prepare(parameters))


def run_graph(prepared: PreparedRun) -> str:
    """Run the stages of a prepared request; answers the run id."""
    prepared.save()
    order = prepared.record.preset.order
    states: dict[str, State[Any]] = {}
    with prepared.effects.stop.installed(), prepared.effects.warm_launcher():
        for name in prepared.stages:
            parents = [states[parent] for parent in parents_of(name, order) if parent in states]
            states[name] = stage_task(prepared, name)(wait_for=parents, return_state=True)
            states[name].result()  # raises what the stage raised
    publish_summary(prepared)
    return prepared.record.run


def stage_task(prepared: PreparedRun, name: str) -> Task[[], dict[str, Any]]:
    """The Prefect task of one stage. Retries are ours: they know about checkpoints."""

    def run_one() -> dict[str, Any]:
        shown = DashboardReporter(prepared.record.run, name)
        effects = _told(prepared.effects, shown)
        from_start = name in prepared.from_start
        commit = run_stage(effects, record=prepared.record, stage=name, from_start=from_start)
        return _answer(commit)

    run_one.__doc__ = f"Stage {name} of run {prepared.record.run}."
    return Task(fn=run_one, name=name, task_run_name=name, cache_policy=NO_CACHE, retries=0)


def _told(effects: RunEffects, shown: DashboardReporter) -> RunEffects:
    return replace(effects, reporter=Reporters(effects.reporter, shown))


def _answer(commit: Commit) -> dict[str, Any]:
    """What the dashboard shows as the task's result: a reference, never weights."""
    return {"stage": commit.stage, "attempt": commit.attempt, "digest": commit.digest}
