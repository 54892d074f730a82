"""A stage job without torch training: real spec, real objects, real result, scripted endings.

How it behaves is read from `M1_FAKE` (JSON, per stage), for example
`{"pretrain": {"endings": ["crash", "ok"]}}`: one ending per attempt, the last one repeats.
Endings: ok, no-result, bad-input, preempt, crash, wrong-size, slow (until SIGTERM, then 75).
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

from m1.infra.canonical_json import canonical_json
from m1.infra.manifest import ObjectEntry
from m1.infra.names import attempt_prefix, progress_key
from m1.infra.store.open_store import open_store
from m1.infra.transfer import upload_tree
from m1.stages.checkpoints import RECORD_NAME, CheckpointRecord, checkpoint_prefix, resume_points
from m1.stages.contract import RESULT_NAME, Progress, StageResult, StageSpec


def main(path: Path) -> int:
    if os.environ.get("RANK", "0") != "0":
        return 0  # one rank plays the whole job
    spec = StageSpec.from_bytes(path.read_bytes())
    script = json.loads(os.environ.get("M1_FAKE", "{}")).get(spec.stage, {})
    endings = script.get("endings", ["ok"])
    ending = endings[min(spec.fence, len(endings)) - 1]
    store = open_store(spec.store_url)
    say(f"fake job of {spec.stage}, attempt {spec.attempt}, ending {ending}")
    say("token=hunter2secret AWS_SECRET_ACCESS_KEY=abcdefghijklmnop")
    (path.parent / "worker.pid").write_text(str(os.getpid()))
    start = spec.resume.step if spec.resume else 0
    heartbeat(store, spec, step=start + 1)
    if ending == "slow":
        return slow(store, spec, start)
    if "checkpoint" in ending:
        checkpoint(store, spec, start + 1)
    codes = {"bad-input": 65, "preempt": 75, "crash": 9}
    for name, code in codes.items():
        if ending.startswith(name):
            say(f"{name}: reason of the end")
            return code
    if ending != "no-result":
        leave_result(store, spec, start, wrong_size=ending == "wrong-size")
    return 0


def say(text):
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def heartbeat(store, spec, *, step):
    progress = Progress(
        stage=spec.stage, attempt=spec.attempt, phase="training", step=step, steps=10, loss=2.5,
        tokens_per_second=1000.0, eta_seconds=1.0, updated_at=time.time(),
    )  # fmt: skip
    store.put(progress_key(spec.run, spec.stage), progress.to_bytes())


def slow(store, spec, start):
    stopped = []
    signal.signal(signal.SIGTERM, lambda *_: stopped.append(1))
    step = start
    while not stopped:
        step += 1
        checkpoint(store, spec, step)
        heartbeat(store, spec, step=step)
        time.sleep(0.1)
    checkpoint(store, spec, step + 1)
    return 75


def checkpoint(store, spec, step):
    prefix = checkpoint_prefix(spec.run, spec.stage, spec.attempt, step)
    folder = Path(sys.argv[1]).parent / "scratch" / f"step-{step}"
    folder.mkdir(parents=True)
    (folder / "weights").write_bytes(b"w" * 1000)
    record = CheckpointRecord(
        fingerprint=spec.fingerprint, step=step, tokens=step * 10, seconds=1.0,
        objects=upload_tree(store, prefix, folder),
    )  # fmt: skip
    store.put_if_absent(prefix + RECORD_NAME, record.to_bytes())
    for point in list(resume_points(store, spec.run, spec.stage, spec.fingerprint))[2:]:
        old = checkpoint_prefix(spec.run, spec.stage, point.attempt, point.step)
        store.delete(old + RECORD_NAME)


def leave_result(store, spec, start, *, wrong_size):
    outputs = Path(sys.argv[1]).parent / "scratch" / "outputs"
    outputs.mkdir(parents=True)
    (outputs / "weights.bin").write_bytes(spec.stage.encode() * 500)
    lines = [
        {"step": s, "tokens": s * 100, "loss": 5.0 - s * 0.1, "tokens_per_second": 1000.0}
        for s in range(1, 11)
    ]
    if spec.stage.startswith("reinforce"):
        lines = [{**line, "reward": line["step"] / 20} for line in lines]
    (outputs / "metrics.jsonl").write_bytes(b"".join(canonical_json(x) + b"\n" for x in lines))
    if spec.stage == "export":
        (outputs / "hugging_face").mkdir()
        (outputs / "hugging_face" / "config.json").write_text("{}")
    prefix = attempt_prefix(spec.run, spec.stage, spec.attempt)
    objects = tuple(
        ObjectEntry(
            key="outputs/" + entry.key,
            size_bytes=entry.size_bytes + (1 if wrong_size else 0),
            sha256=entry.sha256,
        )
        for entry in upload_tree(store, prefix + "outputs/", outputs)
    )
    result = StageResult(
        fingerprint=spec.fingerprint, attempt=spec.attempt, fence=spec.fence, objects=objects,
        metrics={"loss_first": 4.9, "loss_last": 4.0, "resumed_from": start},
        versions={"python": "3"}, steps=10, tokens=1000, seconds=1.5,
    )  # fmt: skip
    store.put_if_absent(prefix + RESULT_NAME, result.to_bytes())


if __name__ == "__main__":
    code = main(Path(sys.argv[1]))
    answer = Path(sys.argv[1]).parent / "worker_exit.json"
    answer.write_text(json.dumps({"exit_code": code}))
    sys.exit(code)
