"""Nothing that a hostile program does is felt outside its sandbox, nor by the next program."""

import subprocess
import sys
from pathlib import Path

import pytest

from m1.infra.sandbox.pool import WarmPool
from m1.infra.sandbox.protocol import Outcome, Program, Script
from tests.security.conftest import LIMITS, Host, inside_processes, wait_for
from tests.security.hostile import ATTACKS, PRELUDE, Attack

GRACE_SECONDS = 10.0  # a second is promised; these tests run beside others on two cores


def _run(pool: WarmPool, source: str) -> Outcome:
    with pool.start() as session:
        session.load(Program(source=source))
        return session.invoke(Script())


def _wait_until_warm(pools: dict[bool, WarmPool]) -> None:
    """Nothing is being started: what can be counted now are the ready sessions."""
    for pool in pools.values():
        pool.wait_until_warm()


def test_the_corpus_is_as_large_as_promised() -> None:
    assert len(ATTACKS) >= 30
    assert len({attack.name for attack in ATTACKS}) == len(ATTACKS)


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_attack_is_contained(pools: dict[bool, WarmPool], host: Host, attack: Attack) -> None:
    pool = pools[not attack.is_endless]
    _wait_until_warm(pools)
    before = len(inside_processes())

    outcome = _run(pool, PRELUDE + host.aim(attack.source))

    said = outcome.stdout.decode(errors="replace")
    assert outcome.ending in attack.endings, (outcome.ending, said, outcome.stderr)
    assert outcome.wall_seconds < pool.limits.wall_seconds + GRACE_SECONDS
    assert len(outcome.stdout) + len(outcome.stderr) <= 2 * LIMITS.output_bytes
    if outcome.exit_code is not None:  # else the whole session was killed, output included
        assert attack.says in said
    assert attack.never_says not in said
    assert said.count(": REFUSED") >= attack.refused, (said, outcome.stderr)
    host.assert_unharmed()
    _wait_until_warm(pools)
    assert wait_for(lambda: len(inside_processes()) == before)
    assert _run(pool, "print(6 * 7)").stdout == b"42\n"


@pytest.mark.parametrize(
    "attack", [a for a in ATTACKS if a.leaks_outside], ids=lambda attack: attack.name
)
def test_attack_would_succeed_without_a_sandbox(host: Host, attack: Attack, tmp_path: Path) -> None:
    source = PRELUDE + host.aim(attack.source)

    ended = subprocess.run(
        [sys.executable, "-c", source],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )

    assert "DONE" in ended.stdout or "canary" in ended.stdout
