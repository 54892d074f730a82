"""The process that compares mathematical answers: JSON lines in, JSON lines out, nothing else.

Started as a file by `process.py`, isolated from the environment and from this project's modules.
It loads and warms math-verify once and forks for every comparison, so that no answer can leave
anything behind for the next one. Comparing may cost any amount of time and memory (`9^{9^{9^9}}`):
each child runs under a timer of processor time whose signal ends it, even inside one long
multiplication. Only math-verify's LaTeX reader is used: its reader of plain expressions goes
through sympy's `parse_expr`, which evaluates.
"""

import json
import logging
import os
import re
import resource
import signal
import sys
from typing import Any

from math_verify import LatexExtractionConfig, parse, verify

MEMORY_BYTES = 2 << 30
_DECIMAL = re.compile(r"-?[0-9]{1,18}\.([0-9]{1,15})")
_READER = (LatexExtractionConfig(boxed_match_priority=0),)


def _read(text: str) -> list[Any]:
    """What the text may mean, as sympy objects; empty where it cannot be read."""
    return parse(
        f"${text}$",
        _READER,
        fallback_mode="no_fallback",
        extraction_mode="first_match",
        parsing_timeout=None,
    )


def _is_within(gold: Any, answer: Any, tolerance: float) -> bool:
    """Whether both are real numbers at most `tolerance` apart."""
    try:
        return abs(float(answer) - float(gold)) <= tolerance
    except (TypeError, ValueError, OverflowError):
        return False


def tolerance_of(gold: str, value: float, relative_tolerance: float) -> float:
    """How far an answer may be off: half of the last decimal written, or a share of the value."""
    decimals = _DECIMAL.fullmatch(gold)
    rounding = 0.5 * 10.0 ** -len(decimals[1]) * (1 + 1e-9) if decimals else 0.0
    return max(rounding, relative_tolerance * abs(value))


def compare(gold: str, answer: str, relative_tolerance: float) -> bool:
    """Whether the answer means the same as the gold, or is a number within the tolerance."""
    wanted, found = _read(gold), _read(answer)
    if not wanted or not found:
        return False
    if verify(wanted, found, timeout_seconds=None):
        return True
    try:
        tolerance = tolerance_of(gold, float(wanted[0]), relative_tolerance)
    except (TypeError, ValueError, OverflowError):
        return False
    return tolerance > 0 and _is_within(wanted[0], found[0], tolerance)


def _limit_resources() -> None:
    """What a child may use; processor time is limited by the request."""
    for kind, most in (
        (resource.RLIMIT_AS, MEMORY_BYTES),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NPROC, 0),
    ):
        resource.setrlimit(kind, (most, most))


def _compare_and_exit(request: dict[str, Any]) -> None:
    """In a child: exit 0 for equal, 1 for different, 2 for out of memory or depth."""
    code = 3
    try:
        _limit_resources()
        signal.setitimer(signal.ITIMER_PROF, float(request["cpu_seconds"]))
        equal = compare(request["gold"], request["answer"], request["relative_tolerance"])
        code = 0 if equal else 1
    except (MemoryError, RecursionError):
        code = 2
    finally:
        os._exit(code)


_MEANING = {0: "pass", 1: "fail", 2: "policy_timeout", -signal.SIGPROF: "policy_timeout"}


def _outcome(request: dict[str, Any]) -> str:
    child = os.fork()
    if child == 0:
        _compare_and_exit(request)
    _, status = os.waitpid(child, 0)
    return _MEANING.get(os.waitstatus_to_exitcode(status), "infra_error")


def _say(outcome: str) -> None:
    sys.stdout.write(json.dumps({"outcome": outcome}) + "\n")
    sys.stdout.flush()


def main() -> None:
    """Warm up, say so, then answer one request per line until the input ends."""
    logging.disable(logging.CRITICAL)
    is_sound = compare(r"\frac{1}{2}", "0.5", 0.0) and not compare("(x+1)^2", "x^2+1", 0.0)
    _say("ready" if is_sound else "infra_error")
    for line in sys.stdin:
        _say(_outcome(json.loads(line)))


if __name__ == "__main__":
    main()
