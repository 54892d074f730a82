"""The `m1` command on a local store: what it refuses, what it reads, what it may not import."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from m1.flows import cli
from m1.flows.fork import fork_run
from m1.flows.run_record import load_record
from m1.flows.stage_run import run_stage
from m1.flows.verify import verify_run
from m1.infra.errors import UsageError
from m1.infra.manifest import load_commit
from m1.infra.names import attempt_prefix, attempts_prefix

ORDER = ("curate", "pretrain", "sft", "reinforce-40k", "export")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("M1_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("M1_STORE", str(tmp_path / "store"))
    return tmp_path


@pytest.fixture
def finished(home, direct, effects, record) -> None:
    """A run whose stages are all committed."""
    outside = effects()
    for stage in ORDER:
        run_stage(outside, record=record, stage=stage)


def files_below(folder: Path) -> list[str]:
    return sorted(str(path) for path in folder.rglob("*") if path.is_file())


def test_help_imports_neither_torch_nor_prefect():
    code = (
        "import sys; from m1.flows import cli\n"
        "try: cli.main(['--help'])\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'prefect', 'megatron', 'boto3', 'rich', 'pydantic'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)

    assert (done.returncode, done.stderr) == (0, "")
    assert "resume" in done.stdout


@pytest.mark.parametrize(
    "module",
    [
        "commands_run",
        "commands_look",
        "commands_plan",
        "commands_store",
        "commands_dashboard",
        "commands_serve",
    ],
)
def test_commands_import_neither_torch_nor_prefect(module):
    code = (
        f"import sys, m1.flows.{module}\n"
        "sys.exit(str({'torch', 'prefect', 'megatron'} & set(sys.modules) or 0))"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)

    assert done.stderr.strip() in ("", "0")


BAD_INPUT = [
    pytest.param(["run", "--preset", "huge"], ["preset", "'huge'", "toy"], id="preset"),
    pytest.param(
        ["stage", "pretran"], ["stage", "'pretran'", "did you mean 'pretrain'"], id="stage"
    ),
    pytest.param(
        ["run", "--set", "pretrain.stepz=3"], ["pretrain.stepz", "3", "'steps'"], id="setting"
    ),
    pytest.param(
        ["run", "--set", "pretrain.learning_rate=99"],
        ["pretrain.learning_rate", "99", "> 0, <= 10"],
        id="out of range",
    ),
    pytest.param(["run", "--run", "../x"], ["run id", "'../x'", "[a-z0-9]"], id="dots"),
    pytest.param(["run", "--run", "a/b"], ["run id", "'a/b'", "[a-z0-9]"], id="slash"),
    pytest.param(["resume", "no-such"], ["run id", "'no-such'", "none yet"], id="unknown run"),
    pytest.param(["status", "no-such"], ["run id", "'no-such'"], id="status of no run"),
    pytest.param(["run", "--until", "sftt"], ["until_stage", "'sftt'", "'sft'"], id="until"),
    pytest.param(
        ["run", "--from", "sft", "--until", "pretrain"], ["from_stage", "'sft'"], id="backwards"
    ),
    pytest.param(["run", "--from", "sft"], ["sft needs curate, pretrain"], id="missing parents"),
    pytest.param(["stage", "sft"], ["m1 stage pretrain", "--with-parents"], id="missing parent"),
    pytest.param(["run", "--force", "sftt"], ["force", "'sftt'"], id="force"),
    pytest.param(
        ["run", "--set", "curate.corpus=EMPTY"],
        ["curate.corpus", "EMPTY", "documents"],
        id="corpus",
    ),
    pytest.param(["run", "--set", "curate.recipe=nope"], ["recipe", "nope"], id="recipe"),
    pytest.param(["run", "--set", "layout.nodes=2"], ["layout.nodes", "2", "1"], id="nodes"),
    pytest.param(["run", "--store", "ftp://x/y"], ["store", "ftp://x/y", "s3://"], id="scheme"),
    pytest.param(["up", "--port", "80"], ["--port", "80", "1024"], id="port"),
    pytest.param(["plan", "--preset", "tiny"], ["preset", "'tiny'", "did you mean"], id="plan"),
]


@pytest.mark.parametrize(("arguments", "words"), BAD_INPUT)
def test_bad_input_is_named_and_nothing_is_written(home, capsys, arguments, words):
    (home / "EMPTY").mkdir()
    arguments = [text.replace("EMPTY", str(home / "EMPTY")) for text in arguments]

    code = cli.main(arguments)

    complaint = capsys.readouterr().err
    assert code == 2
    assert complaint.startswith("m1: ")
    assert "Traceback" not in complaint
    for word in words:
        assert word in complaint
    assert files_below(home) == []


def test_an_unreachable_store_is_named_before_anything_starts(home, capsys):
    (home / "file").write_text("")

    code = cli.main(["run", "--store", str(home / "file" / "store")])

    assert code == 2
    assert "Traceback" not in capsys.readouterr().err
    assert files_below(home) == [str(home / "file")]


@pytest.mark.skipif(not Path("/sys/kernel").is_dir(), reason="needs a read-only file system")
def test_a_read_only_store_is_named_before_anything_starts(home, capsys):
    code = cli.main(["run", "--store", "/sys/kernel/m1-store"])

    assert code == 2
    assert "m1: " in capsys.readouterr().err
    assert files_below(home) == []


def test_an_unreachable_s3_endpoint_is_named(home, capsys, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "id")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "topsecretvalue")

    code = cli.main(["run", "--store", "s3://bucket/prefix"])

    complaint = capsys.readouterr().err
    assert code == 2
    assert "topsecretvalue" not in complaint
    assert files_below(home) == []


def test_status_has_the_shape_other_tools_rely_on(finished, capsys):
    code = cli.main(["status", "r1", "--json"])

    status = json.loads(capsys.readouterr().out)
    assert code == 0
    assert set(status) == {"run", "preset", "store", "stages"}
    assert [stage["name"] for stage in status["stages"]] == list(ORDER)
    for stage in status["stages"]:
        assert stage["state"] == "committed"
        assert {"fingerprint", "attempts", "steps", "tokens", "seconds", "metrics"} <= set(stage)
    assert status["stages"][1]["metrics"]["loss_last"] == 4.0


def test_a_finished_run_is_answered_from_the_store(finished, home, capsys):
    code = cli.main(["run", "--run", "r1"])

    assert code == 0
    assert "nothing started" in capsys.readouterr().out
    assert not (home / "home" / "prefect").exists()


def test_changed_settings_are_refused_with_the_fork_line(finished, capsys):
    code = cli.main(["run", "--run", "r1", "--set", "sft.steps=7"])

    complaint = capsys.readouterr().err
    assert code == 2
    assert re.search(r"sft.steps: \d+ -> 7", complaint)
    assert "m1 fork r1 r1-2 --from sft --set sft.steps=7" in complaint


@pytest.mark.usefixtures("direct")
def test_status_tells_waiting_failed_and_preempted_apart(home, effects, record, capsys):
    outside = effects(curate=["bad-input"])
    with pytest.raises(Exception, match="reason of the end"):
        run_stage(outside, record=record, stage="curate")

    cli.main(["status", "r1", "--json"])

    stages = json.loads(capsys.readouterr().out)["stages"]
    assert [stage["state"] for stage in stages] == ["failed", *["waiting"] * 4]
    assert "reason of the end" in stages[0]["reason"]
    cli.main(["logs", "r1", "curate"])
    assert "bad-input: reason of the end" in capsys.readouterr().out


def test_verify_finds_a_flipped_byte(finished, store, home, capsys):
    commit = load_commit(store, "r1", "pretrain")
    path = home / "store" / attempt_prefix("r1", "pretrain", commit.attempt) / "outputs"
    body = bytearray((path / "weights.bin").read_bytes())
    body[7] ^= 1
    (path / "weights.bin").write_bytes(body)

    code = cli.main(["verify", "r1", "--json"])

    found = json.loads(capsys.readouterr().out)
    assert code == 3
    assert found["problems"] == ["pretrain: outputs/weights.bin: wrong sha256"]


def test_fork_keeps_what_is_unchanged_and_stands_alone(finished, store, home):
    kept = fork_run(store, run="r1", new="r2", from_stage="sft", overrides=("sft.steps=7",))

    for path in sorted((home / "store" / "runs" / "r1").rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    record = load_record(store, "r2")
    assert kept == ("curate", "pretrain")
    assert verify_run(store, record).problems == ()
    assert load_commit(store, "r2", "sft") is None


def test_fork_refuses_to_keep_what_the_change_touches(finished, store):
    with pytest.raises(UsageError, match="use --from pretrain"):
        fork_run(store, run="r1", new="r2", from_stage="sft", overrides=("pretrain.steps=7",))

    assert "r2" not in {key.key.split("/")[1] for key in store.list("runs/")}


@pytest.mark.usefixtures("direct")
def test_gc_keeps_commits_and_the_newest_checkpoint(home, effects, record, store, capsys):
    outside = effects(curate=["crash", "ok"], pretrain=["crash-checkpoint", "bad-input-checkpoint"])
    run_stage(outside, record=record, stage="curate")
    with pytest.raises(Exception, match="reason of the end"):
        run_stage(outside, record=record, stage="pretrain")

    assert cli.main(["gc", "r1"]) == 0
    assert "deleted 0 objects" in capsys.readouterr().out
    assert cli.main(["gc", "r1", "--all"]) == 0

    left = [s.key for s in store.list(attempts_prefix("r1", "pretrain"))]
    assert left
    assert all("/checkpoints/step-00000002/" in key for key in left)
    assert verify_run(store, record).problems == ()
    (attempt,) = {s.key.split("/")[4] for s in store.list(attempts_prefix("r1", "curate"))}
    assert attempt == load_commit(store, "r1", "curate").attempt


def test_export_writes_the_model_folder_into_an_empty_folder_only(finished, home, capsys):
    assert cli.main(["export", "r1", str(home / "out"), "--json"]) == 0
    assert cli.main(["export", "r1", str(home / "out")]) == 2

    assert (home / "out" / "config.json").read_text() == "{}"
    assert "DIR" in capsys.readouterr().err


def test_the_report_is_one_page_with_every_text_escaped(finished, home):
    assert cli.main(["report", "r1", "-o", str(home / "r.html")]) == 0

    page = (home / "r.html").read_text()
    assert page.count("<svg") == 2
    assert "Reward per step" in page
    assert "<script" not in page
    assert "http" not in page.replace("http://www.w3.org", "").replace("http://purl.org", "").replace(  # noqa: E501
        "http://creativecommons.org", ""
    ).replace("https://matplotlib.org", "")  # fmt: skip


def test_plan_answers_in_the_agreed_shape(home, capsys):
    assert cli.main(["plan", "--preset", "full", "--json"]) == 0

    plan = json.loads(capsys.readouterr().out)
    assert {
        "preset", "parameters", "memory_per_gpu", "flops_per_token", "gpu_hours", "cost",
        "store_bytes", "layout",
    } <= set(plan)  # fmt: skip
    assert plan["parameters"] == {"total": 456_089_655_296, "active": 45_944_920_064}


def test_bench_lists_every_runnable_benchmark_with_its_question(capsys):
    assert cli.main(["bench", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["benchmarks"]
    assert {"learning", "decode", "faults"} <= set(found)
    assert all(found.values()), "each says what it asks"


def test_bench_runs_one_with_its_own_words(capfd, monkeypatch, tmp_path):
    (tmp_path / "tiny.py").write_text(
        'import sys\nif __name__ == "__main__":\n    print(sys.argv[1:])\n'
        "    sys.exit(len(sys.argv) > 3)\n"
    )
    monkeypatch.setattr("m1.flows.commands_bench.folder", lambda: tmp_path)
    assert cli.main(["bench", "tiny", "--seeds", "1"]) == 0
    assert "['--seeds', '1']" in capfd.readouterr().out
    assert cli.main(["bench", "tiny", "a", "b", "c"]) == 3
    assert cli.main(["bench", "unknown"]) == 2
