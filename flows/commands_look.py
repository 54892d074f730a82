"""`m1 status`, `logs`, `report`, `generate`: they only read. No torch, no Prefect here."""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from m1.flows.accepted import unknown_name
from m1.flows.attempt import LOG_KEY, LOG_NAME
from m1.flows.commands_run import store_of
from m1.flows.run_record import RunRecord, load_record, run_names
from m1.flows.screen import complain, say, show_status, show_table
from m1.flows.status import run_status, stage_status
from m1.infra.errors import EXIT_OK, EXIT_STAGE_FAILED, InvalidSettingError, NotFoundError
from m1.infra.manifest import load_commit
from m1.infra.names import attempts_prefix, parse_run_id
from m1.infra.redact import redact
from m1.infra.settings import load_environment
from m1.infra.store.protocol import Store
from m1.stages.registry import kind_of

FOLLOW_SECONDS = 0.5
_MAX_TEMPERATURE = 10.0
_MAX_NEW_TOKENS = 1_000_000


def print_json(value: object) -> None:
    """One JSON document on standard output."""
    say(json.dumps(value, indent=2, sort_keys=False))


def do_status(arguments: argparse.Namespace) -> int:
    """One run, or all of them."""
    store = store_of(arguments)
    if arguments.run is None:
        return _all_runs(store, as_json=arguments.json)
    status = run_status(store, load_record(store, parse_run_id(arguments.run)))
    if arguments.json:
        print_json(status)
    else:
        show_status(status)
    return EXIT_OK


def _all_runs(store: Store, *, as_json: bool) -> int:
    rows = [_run_row(store, load_record(store, run)) for run in run_names(store)]
    if as_json:
        print_json({"store": store.url, "runs": rows})
    else:
        cells = [[row["run"], row["preset"], row["created_at"], row["summary"]] for row in rows]
        show_table(f"runs in {store.url}", ("run", "preset", "created", "stages"), cells)
    return EXIT_OK


def _run_row(store: Store, record: RunRecord) -> dict[str, Any]:
    states = [stage_status(store, record.run, name)["state"] for name in record.preset.order]
    counts = {state: states.count(state) for state in dict.fromkeys(states)}
    return {
        "run": record.run,
        "preset": record.preset.name,
        "created_at": record.created_at,
        "states": counts,
        "summary": ", ".join(f"{count} {state}" for state, count in counts.items()),
    }


# ---- logs ----------------------------------------------------------------------------------------


def do_logs(arguments: argparse.Namespace) -> int:
    """The newest log of a stage: live when its job runs on this machine, else the stored one."""
    store = store_of(arguments)
    record = load_record(store, parse_run_id(arguments.run))
    stage = _stage_of(record, arguments.stage)
    shown_bytes = 0
    while True:
        text = _log(store, record.run, stage)
        sys.stdout.write(text[shown_bytes:])
        sys.stdout.flush()
        shown_bytes = max(shown_bytes, len(text))
        state = stage_status(store, record.run, stage)["state"]
        if not arguments.follow or state in ("committed", "failed"):
            break
        time.sleep(FOLLOW_SECONDS)
    if not shown_bytes:
        complain(f"m1: {stage} of run {record.run} has written no log yet")
    return EXIT_OK


def _stage_of(record: RunRecord, stage: str) -> str:
    if stage not in record.preset.order:
        raise unknown_name("stage", stage, record.preset.order)
    return stage


def _log(store: Store, run: str, stage: str) -> str:
    live = _live_log(run, stage)
    if live is not None:
        return redact(live.read_text("utf-8", "replace"))
    prefix = attempts_prefix(run, stage)
    keys = [summary.key for summary in store.list(prefix) if summary.key.endswith(f"/{LOG_KEY}")]
    if not keys:
        return ""
    try:
        return redact(store.get(keys[-1]).body.decode("utf-8", "replace"))
    except NotFoundError:
        return ""


def _live_log(run: str, stage: str) -> Path | None:
    folder = load_environment(os.environ).home / "work" / run / stage
    logs = sorted(folder.glob(f"*/{LOG_NAME}"))
    return logs[-1] if logs else None


# ---- report, generate ----------------------------------------------------------------------------


def do_report(arguments: argparse.Namespace) -> int:
    """One self-contained page."""
    from m1.flows.reporting import report_page

    store = store_of(arguments)
    record = load_record(store, parse_run_id(arguments.run))
    path = Path(arguments.output)
    try:
        path.write_text(report_page(store, record), encoding="utf-8")
    except OSError as error:
        raise InvalidSettingError(
            field="--output", value=arguments.output, accepted=f"a writable file ({error.strerror})"
        ) from error
    say(f"wrote {path}")
    return EXIT_OK


def do_generate(arguments: argparse.Namespace) -> int:
    """One answer of the model; the tensors live in a process of their own."""
    store = store_of(arguments)
    record = load_record(store, parse_run_id(arguments.run))
    request = {
        "store": store.url,
        "run": record.run,
        "stage": weights_stage(store, record, arguments.stage),
        "prompt": arguments.prompt,
        **_sampling(arguments),
    }
    answered = subprocess.run(
        [sys.executable, "-m", "m1.stages.generate"],
        input=json.dumps(request).encode(),
        capture_output=True,
        check=False,
    )
    if answered.returncode:
        complain("m1: " + redact(answered.stderr.decode("utf-8", "replace")).strip()[-2000:])
        return EXIT_STAGE_FAILED
    answer = json.loads(answered.stdout.decode().strip().splitlines()[-1])
    if arguments.json:
        print_json(answer)
    else:
        say(answer["text"])
    return EXIT_OK


def _sampling(arguments: argparse.Namespace) -> dict[str, object]:
    if not 1 <= arguments.max_new_tokens <= _MAX_NEW_TOKENS:
        raise InvalidSettingError(
            field="--max-new-tokens",
            value=arguments.max_new_tokens,
            accepted=f"whole number >= 1, <= {_MAX_NEW_TOKENS}",
        )
    if not 0 <= arguments.temperature <= _MAX_TEMPERATURE:
        raise InvalidSettingError(
            field="--temperature",
            value=arguments.temperature,
            accepted=f"number >= 0, <= {_MAX_TEMPERATURE}",
        )
    return {
        "max_new_tokens": arguments.max_new_tokens,
        "temperature": arguments.temperature,
        "seed": arguments.seed,
    }


def weights_stage(store: Store, record: RunRecord, asked: str | None) -> str:
    """The stage asked for, else the last committed one that gives weights."""
    giving = [name for name in record.preset.order if kind_of(name).gives_weights]
    if asked is not None and asked not in giving:
        raise unknown_name("--stage", asked, giving)
    committed = [name for name in giving if load_commit(store, record.run, name) is not None]
    if not committed or (asked or committed[-1]) not in committed:
        raise InvalidSettingError(
            field="--stage",
            value=asked,
            accepted=", ".join(committed) or f"nothing yet: m1 resume {record.run} first",
        )
    return asked or committed[-1]
