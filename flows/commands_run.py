"""`m1 run`, `stage`, `resume`, `fork`: they start Prefect only when something is left to do."""

import argparse
import os
from collections.abc import Iterator
from contextlib import contextmanager

from m1.flows.accepted import unknown_name, validated
from m1.flows.fork import fork_run
from m1.flows.parameters import PipelineParameters, RunParameters, StageParameters
from m1.flows.prepare import SURROUNDINGS, PreparedRun, Surroundings, prepare
from m1.flows.preset import preset_names
from m1.flows.run_record import load_record
from m1.flows.screen import ScreenReporter, say, screen_reporter, show_status
from m1.flows.status import run_status
from m1.infra.errors import EXIT_OK
from m1.infra.names import parse_run_id
from m1.infra.settings import load_environment
from m1.infra.store.open_store import open_store
from m1.infra.store.protocol import Store


def store_of(arguments: argparse.Namespace) -> Store:
    """The store that a command names, or the default one."""
    environment = load_environment(os.environ)
    return open_store(arguments.store or environment.store_url, environment)


def do_run(arguments: argparse.Namespace) -> int:
    """The whole pipeline, or a part of it."""
    values = _common(arguments) | {
        "from_stage": arguments.from_stage,
        "until_stage": arguments.until_stage,
    }
    return _start("pipeline", validated(PipelineParameters, values, prefix="run"))


def do_stage(arguments: argparse.Namespace) -> int:
    """One stage."""
    values = _common(arguments) | {
        "stage": arguments.name,
        "with_parents": arguments.with_parents,
    }
    return _start("stage", validated(StageParameters, values, prefix="stage"))


def do_resume(arguments: argparse.Namespace) -> int:
    """Go on with a run as it was started."""
    run = parse_run_id(arguments.run)
    load_record(store_of(arguments), run)  # a run that does not exist is not resumed
    values = {
        "preset": None,
        "run": run,
        "store": arguments.store,
        "overrides": arguments.overrides,
    }
    return _start("pipeline", validated(PipelineParameters, values, prefix="run"))


def do_fork(arguments: argparse.Namespace) -> int:
    """A new run that keeps the commits before a stage."""
    reused = fork_run(
        store_of(arguments),
        run=parse_run_id(arguments.run),
        new=parse_run_id(arguments.new),
        from_stage=arguments.from_stage,
        overrides=tuple(arguments.overrides),
    )
    say(f"run {arguments.new} keeps {', '.join(reused) or 'nothing'} of {arguments.run}")
    say(f"start it with: m1 resume {arguments.new}")
    return EXIT_OK


def _common(arguments: argparse.Namespace) -> dict[str, object]:
    preset = arguments.preset
    if preset is not None and preset not in preset_names():
        raise unknown_name("preset", preset, preset_names())
    if arguments.run is not None:
        parse_run_id(arguments.run)
    if preset is None and arguments.run is None:
        preset = "toy"
    return {
        "preset": preset,
        "run": arguments.run,
        "store": arguments.store,
        "overrides": arguments.overrides,
        "force": arguments.force,
    }


def _start(flow_name: str, parameters: RunParameters) -> int:
    """Check everything, say the run id, then run what is left in a Prefect flow run."""
    prepared = prepare(parameters)
    run, store = prepared.record.run, prepared.effects.store
    say(f"run {run}  ({prepared.record.preset.name}, store {store.url})")
    if prepared.is_committed:
        say("everything asked for is committed already; read from the store, nothing started")
        show_status(run_status(store, prepared.record))
        return EXIT_OK
    # The id is fixed from here on: the flow must not invent another one.
    parameters = parameters.model_copy(update={"run": run})
    with _screen(prepared):
        _run_flow(flow_name, parameters)
    show_status(run_status(store, prepared.record))
    say(f"look closer: m1 status {run} · m1 report {run} · m1 generate {run} '3>4=?'")
    return EXIT_OK


@contextmanager
def _screen(prepared: PreparedRun) -> Iterator[ScreenReporter]:
    earlier = SURROUNDINGS.get() or Surroundings()
    with screen_reporter(prepared.stages) as reporter, earlier.stop.installed():
        told = Surroundings(
            reporter=reporter, stop=earlier.stop, module=earlier.module, environ=earlier.environ
        )
        token = SURROUNDINGS.set(told)
        try:
            yield reporter
        finally:
            SURROUNDINGS.reset(token)


def _run_flow(name: str, parameters: RunParameters) -> None:
    from m1.flows.prefect_session import prefect_session, quiet_console

    with prefect_session(os.environ, load_environment(os.environ)):
        from m1.flows import pipeline as flows

        quiet_console()
        getattr(flows, name)(parameters)
