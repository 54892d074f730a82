"""`m1 verify`, `gc`, `export`: what is stored, checked, swept, taken out."""

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

from m1.flows.commands_look import print_json
from m1.flows.commands_run import store_of
from m1.flows.run_record import RunRecord, load_record
from m1.flows.screen import say, size_words
from m1.flows.sweep import Sweep, plan_sweep, sweep_run
from m1.flows.verify import verify_run
from m1.infra.clock import SYSTEM_CLOCK
from m1.infra.errors import EXIT_OK, EXIT_STAGE_FAILED, InvalidSettingError, UsageError
from m1.infra.manifest import Commit, ObjectEntry, load_commit
from m1.infra.names import attempt_prefix, parse_run_id
from m1.infra.store.protocol import Store
from m1.infra.transfer import download_entries
from m1.stages.contract import OUTPUTS_PREFIX
from m1.stages.registry import kind_of


def do_verify(arguments: argparse.Namespace) -> int:
    """Re-hash everything committed; every problem is listed."""
    store = store_of(arguments)
    record = load_record(store, parse_run_id(arguments.run))
    found = verify_run(store, record)
    if arguments.json:
        print_json(found.to_json())
    else:
        for problem in found.problems:
            say(f"PROBLEM {problem}")
        say(
            f"{len(found.stages)} stages, {found.objects} objects, {size_words(found.size_bytes)}: "
            + (f"{len(found.problems)} problems" if found.problems else "all as committed")
        )
    return EXIT_STAGE_FAILED if found.problems else EXIT_OK


def do_gc(arguments: argparse.Namespace) -> int:
    """Delete what no commit names and nobody can resume from."""
    store = store_of(arguments)
    record = load_record(store, parse_run_id(arguments.run))
    if arguments.dry_run:
        sweep = plan_sweep(store, record, now_seconds=time.time(), everything=arguments.all)
    else:
        sweep = sweep_run(store, record, clock=SYSTEM_CLOCK, everything=arguments.all)
    _show_sweep(sweep, arguments)
    return EXIT_OK


def _show_sweep(sweep: Sweep, arguments: argparse.Namespace) -> None:
    if arguments.json:
        print_json({**sweep.to_json(), "dry_run": arguments.dry_run})
        return
    verb = "would delete" if arguments.dry_run else "deleted"
    if arguments.dry_run:
        for key in sweep.keys:
            say(key)
    say(f"{verb} {len(sweep.keys)} objects, {size_words(sweep.size_bytes)}")


def do_export(arguments: argparse.Namespace) -> int:
    """The Hugging Face folder of a run, verified on the way."""
    store = store_of(arguments)
    record = load_record(store, parse_run_id(arguments.run))
    commit = _export_commit(store, record)
    directory = _empty_directory(arguments.directory)
    prefix, entries = _model_folder(store, commit)
    directory.mkdir(parents=True, exist_ok=True)
    download_entries(store, prefix, entries, directory)
    size_bytes = sum(entry.size_bytes for entry in entries)
    if arguments.json:
        print_json({"directory": str(directory), "files": len(entries), "bytes": size_bytes})
    else:
        say(f"wrote {len(entries)} files, {size_words(size_bytes)}, to {directory}")
    return EXIT_OK


def _export_commit(store: Store, record: RunRecord) -> Commit:
    stages = [name for name in record.preset.order if kind_of(name).name == "export"]
    commits = (load_commit(store, record.run, name) for name in stages)
    commit = next((commit for commit in commits if commit is not None), None)
    if commit is None:
        raise UsageError(
            f"run {record.run} has not committed export; first: m1 resume {record.run}"
        )
    return commit


def _empty_directory(text: str) -> Path:
    directory = Path(text)
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise InvalidSettingError(
            field="DIR", value=text, accepted="a folder that is empty or does not exist"
        )
    return directory


def _model_folder(store: Store, commit: Commit) -> tuple[str, tuple[ObjectEntry, ...]]:
    """Key prefix and entries of the folder, among the outputs, that holds `config.json`."""
    prefix = attempt_prefix(commit.run, commit.stage, commit.attempt)
    folder = next(_folders_of_config(commit), OUTPUTS_PREFIX)
    entries = tuple(
        ObjectEntry(
            key=entry.key.removeprefix(folder), size_bytes=entry.size_bytes, sha256=entry.sha256
        )
        for entry in commit.objects
        if entry.key.startswith(folder)
    )
    return prefix + folder, entries


def _folders_of_config(commit: Commit) -> Iterator[str]:
    for entry in sorted(commit.objects, key=lambda entry: entry.key.count("/")):
        if entry.key.startswith(OUTPUTS_PREFIX) and entry.key.endswith("/config.json"):
            yield entry.key.removesuffix("config.json")
