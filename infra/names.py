"""Names and keys of everything in the store, built and checked here. Does no I/O."""

import re

from m1.infra.errors import InvalidSettingError

_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}", re.ASCII)
_MAX_KEY_BYTES = 1024


def parse_run_id(text: str) -> str:
    """Return `text` if it is a run id, else raise InvalidSettingError."""
    return _parse("run id", text)


def parse_stage_name(text: str) -> str:
    """Return `text` if it is a stage name, else raise InvalidSettingError."""
    return _parse("stage name", text)


def attempt_name(fence: int, token: str) -> str:
    """Name of one attempt, such as `0003-1f2e3d4c`."""
    return _parse("attempt name", f"{fence:04d}-{token[:8]}")


def run_record_key(run: str) -> str:
    """Key of the resolved configuration of a run."""
    return f"runs/{parse_run_id(run)}/run.json"


def lease_key(run: str, stage: str) -> str:
    """Key of the lease of a stage."""
    return f"{_stage_prefix(run, stage)}lease.json"


def progress_key(run: str, stage: str) -> str:
    """Key of the heartbeat of a stage."""
    return f"{_stage_prefix(run, stage)}progress.json"


def commit_key(run: str, stage: str) -> str:
    """Key whose existence means the stage is done."""
    return f"{_stage_prefix(run, stage)}commit.json"


def attempts_prefix(run: str, stage: str) -> str:
    """Prefix of all attempts of a stage, with a trailing slash."""
    return f"{_stage_prefix(run, stage)}attempts/"


def attempt_prefix(run: str, stage: str, attempt: str) -> str:
    """Prefix of one attempt's objects, with a trailing slash."""
    return f"{attempts_prefix(run, stage)}{_parse('attempt name', attempt)}/"


def validate_key(key: str) -> str:
    """Return `key` if it is a safe relative key, else raise InvalidSettingError."""
    segments = key.split("/")
    if (
        not key.isprintable()  # nor is a lone surrogate, so the encoding below cannot fail
        or "\\" in key
        or len(key.encode("utf-8")) > _MAX_KEY_BYTES
        or any(segment in ("", ".", "..") for segment in segments)
    ):
        raise InvalidSettingError(
            field="key",
            value=key[:100],
            accepted="a relative path of at most 1024 bytes without '..', '\\' or control marks",
        )
    return key


def _stage_prefix(run: str, stage: str) -> str:
    return f"runs/{parse_run_id(run)}/{parse_stage_name(stage)}/"


def _parse(field: str, text: str) -> str:
    if _NAME.fullmatch(text) is None:
        raise InvalidSettingError(field=field, value=text[:100], accepted=_NAME.pattern)
    return text
