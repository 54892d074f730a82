"""The table of faults. What proves a row carries `@pytest.mark.fault(row, ending=...)`."""

import os

ROWS = {
    1: "SIGKILL at any instant of any stage",
    2: "SIGTERM: preemption, also during a save",
    3: "the orchestrator alone is killed",
    4: "hung worker, SIGSTOP past the lease and SIGCONT",
    5: "hung or skipped collective",
    6: "segfault, abort, out of memory",
    7: "worker exits 0 without work",
    8: "disk full, read-only, torn local file",
    9: "clock jumps and disagrees",
    10: "other world size or layout on resume",
    11: "503, 500, SlowDown bursts",
    12: "connect and read timeouts, blackhole",
    13: "reset or truncation in a body",
    14: "flipped bit in a body or at rest, whole and range reads",
    15: "answer lost after a write took effect; write that arrives late",
    16: "409 and 412 on a conditional write",
    17: "two runs race for a stage; zombie writer",
    18: "200 with an error body, redirect, garbage",
    19: "orphan uploads and attempts; a sweep beside a writer",
    20: "an object of a checkpoint or commit is missing",
    21: "older or newer manifest, unknown field",
    22: "expired credentials, 403",
    23: "one straggling part",
    24: "NaN or Inf in loss or gradient",
    25: "loss spike",
    26: "silent corruption of compute",
    27: "corrupt, truncated, empty shard",
    28: "poison documents",
    29: "order of data after a resume",
    30: "changed recipe or settings on resume",
    31: "Prefect server away",
    32: "Prefect database lost",
    33: "the same flow scheduled twice",
    34: "retry storm",
    35: "cancel",
    36: "pickle in a checkpoint",
    37: "untrusted code in the sandbox",
    38: "secrets in logs, manifests, errors, parameters",
    39: "path traversal in ids, keys, members",
    40: "YAML and JSON bombs, tags, duplicates, NaN",
    41: "absurd parameters",
    42: "hostile manifest",
    43: "endpoint override, plain HTTP",
    44: "tampered dependency",
    45: "argument injection into a subprocess",
}
LONG = os.environ.get("M1_FAULTS_LONG") == "1"  # read at import: tests see a clean environment


def count(short: int, long: int) -> int:
    """How many tries: the short form runs in CI, the long one at night."""
    return long if LONG else short
