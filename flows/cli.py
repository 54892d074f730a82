"""The `m1` command: what may be typed, and who does it. Heavy imports happen inside commands.

Exit codes: 0 ended, 2 usage or configuration, 3 a stage failed (or a check found problems),
75 preempted, 130 interrupted.
"""

import argparse
import importlib
import os
import sys
import traceback
from collections.abc import Sequence

from m1.infra.errors import EXIT_BAD_INPUT, EXIT_INTERRUPTED, EXIT_STAGE_FAILED, M1Error

#: command -> module that does it; each module has `do_<command>(arguments) -> exit code`
COMMANDS = {
    "run": "m1.flows.commands_run",
    "stage": "m1.flows.commands_run",
    "resume": "m1.flows.commands_run",
    "fork": "m1.flows.commands_run",
    "status": "m1.flows.commands_look",
    "logs": "m1.flows.commands_look",
    "report": "m1.flows.commands_look",
    "plan": "m1.flows.commands_plan",
    "up": "m1.flows.commands_dashboard",
    "down": "m1.flows.commands_dashboard",
    "verify": "m1.flows.commands_store",
    "gc": "m1.flows.commands_store",
    "export": "m1.flows.commands_store",
    "generate": "m1.flows.commands_look",
    "serve": "m1.flows.commands_serve",
    "doctor": "m1.flows.commands_plan",
    "bench": "m1.flows.commands_bench",
}
_EPILOG = """\
examples:
  m1 run                                   the whole pipeline at toy size
  m1 run --until sft --set pretrain.steps=50
  m1 resume RUN                            go on where it stopped
  m1 status RUN                            how far it is
"""


def build_parser() -> argparse.ArgumentParser:
    """Every command with its flags."""
    parser = argparse.ArgumentParser(
        prog="m1",
        description="MiniMax-M1 as one pipeline: raw documents in, a reasoning model out.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_running(commands)
    _add_looking(commands)
    _add_storing(commands)
    _add_measuring(commands)
    return parser


def _command(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]",
    name: str,
    text: str,
    *,
    reads: bool = False,
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    parser.add_argument(
        "--store", metavar="URL", help="file:///folder or s3://bucket/prefix (default: M1_STORE)"
    )
    parser.add_argument(
        "--debug", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS
    )
    if reads:
        parser.add_argument("--json", action="store_true", help="answer in JSON")
    return parser


def _add_settings(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--preset", metavar="NAME", help="toy, gpu or full (default: toy)")
    parser.add_argument(
        "--set",
        metavar="PATH=VALUE",
        action="append",
        default=[],
        dest="overrides",
        help="change a setting, such as pretrain.learning_rate=1e-3 or run.order=paper",
    )


def _add_running(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    run = _command(commands, "run", "run the whole pipeline, or a part of it")
    _add_settings(run)
    run.add_argument("--run", metavar="ID", help="run id; an existing one goes on")
    run.add_argument("--from", metavar="STAGE", dest="from_stage", help="first stage to run")
    run.add_argument("--until", metavar="STAGE", dest="until_stage", help="last stage to run")
    stage = _command(commands, "stage", "run one stage")
    stage.add_argument("name", metavar="NAME", help="such as pretrain or reinforce-40k")
    _add_settings(stage)
    stage.add_argument("--run", metavar="ID", help="run id (default: a new run)")
    stage.add_argument("--with-parents", action="store_true", help="run missing parents first")
    for parser in (run, stage):
        parser.add_argument(
            "--force",
            metavar="STAGE",
            action="append",
            default=[],
            help="start this stage from its first step, ignoring checkpoints",
        )
    resume = _command(commands, "resume", "go on after a failure or an interruption")
    resume.add_argument("run", metavar="RUN")
    resume.add_argument("--set", metavar="PATH=VALUE", action="append", default=[],
                        dest="overrides", help="where it runs, such as layout.nodes")  # fmt: skip
    fork = _command(commands, "fork", "make a new run that reuses what is unchanged")
    fork.add_argument("run", metavar="RUN")
    fork.add_argument("new", metavar="NEW")
    fork.add_argument("--from", metavar="STAGE", dest="from_stage", required=True,
                      help="first stage that is not reused")  # fmt: skip
    fork.add_argument("--set", metavar="PATH=VALUE", action="append", default=[],
                      dest="overrides", help="settings of the new run")  # fmt: skip


def _add_looking(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    status = _command(commands, "status", "show a run, or all runs of the store", reads=True)
    status.add_argument("run", metavar="RUN", nargs="?")
    logs = _command(commands, "logs", "show what the job of a stage wrote")
    logs.add_argument("run", metavar="RUN")
    logs.add_argument("stage", metavar="STAGE")
    logs.add_argument("--follow", action="store_true", help="go on until the stage ends")
    report = _command(commands, "report", "write one page with plots of a run")
    report.add_argument("run", metavar="RUN")
    report.add_argument("-o", "--output", metavar="FILE", default="report.html")
    cost = "what a run would cost, before anything is spent"
    plan = _command(commands, "plan", cost, reads=True)
    _add_settings(plan)
    _add_planning(plan)
    generate = _command(commands, "generate", "try the model of a run", reads=True)
    generate.add_argument("run", metavar="RUN")
    generate.add_argument("prompt", metavar="PROMPT")
    generate.add_argument("--stage", help="whose weights (default: the last committed ones)")
    generate.add_argument("--max-new-tokens", type=int, default=128, metavar="N")
    generate.add_argument("--temperature", type=float, default=0.0, metavar="T", help="0: greedy")
    generate.add_argument("--seed", type=int, default=1, metavar="N")
    _add_serving(commands)
    _command(commands, "doctor", "what this machine has and what is missing", reads=True)


def _add_planning(plan: argparse.ArgumentParser) -> None:
    numbers = (
        ("--price", "DOLLARS", "per GPU-hour (default: what M1 paid, 2.07)"),
        ("--utilisation", "SHARE", "share of the GPU's peak that is reached (default: 0.3)"),
        ("--gpu-gigabytes", "N", "a layout that needs more memory is refused (default: 80)"),
        ("--node-failures-per-year", "N", "of one machine (default: Llama 3's, 1.383)"),
        ("--restart-minutes", "N", "after a failure, reading apart (default: 10)"),
        ("--store-gigabytes-per-second", "N", "of all machines together (default: 1 each)"),
    )
    for flag, name, text in numbers:
        plan.add_argument(flag, type=float, metavar=name, help=text)
    plan.add_argument("--plot", metavar="FILE", help="draw FLOPs against length (svg, png, pdf)")
    plan.add_argument("--simulate", action="store_true", help="play the run on failing machines")
    plan.add_argument("--trials", type=int, default=1000, metavar="N", help="runs to draw")
    plan.add_argument("--seed", type=int, default=1, metavar="N", help="of the drawing")


def _add_measuring(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    bench = _command(
        commands, "bench", "measure a claim again; without a name, list them", reads=True
    )
    bench.add_argument("name", nargs="?", metavar="NAME", help="such as learning")
    bench.add_argument("words", nargs=argparse.REMAINDER, help="handed to the benchmark")


def _add_serving(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    serve = _command(commands, "serve", "answer OpenAI clients with the model of a run")
    serve.add_argument("run", metavar="RUN")
    serve.add_argument("--stage", help="whose weights (default: the last committed ones)")
    serve.add_argument("--host", default="127.0.0.1", help="address to listen on")
    serve.add_argument("--port", type=int, default=8000, metavar="N", help="0: any free one")
    serve.add_argument("--max-batch", type=int, default=64, metavar="N",
                       help="requests decoded at once")  # fmt: skip
    serve.add_argument("--allow-host", metavar="NAME", action="append", default=[],
                       help="another name clients may call this machine by")  # fmt: skip


def _add_storing(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    verify = _command(commands, "verify", "re-hash everything a run has committed", reads=True)
    verify.add_argument("run", metavar="RUN")
    sweep = _command(commands, "gc", "delete what no commit names", reads=True)
    sweep.add_argument("run", metavar="RUN")
    sweep.add_argument("--dry-run", action="store_true", help="only say what would be deleted")
    sweep.add_argument("--all", action="store_true", help="also what is younger than an hour")
    export = _command(commands, "export", "download the Hugging Face folder of a run", reads=True)
    export.add_argument("run", metavar="RUN")
    export.add_argument("directory", metavar="DIR")
    up = _command(commands, "up", "start dashboard, worker and deployments on this machine")
    up.add_argument("--port", type=int, default=4200, metavar="N")
    _command(commands, "down", "stop what `m1 up` started")


def main(argv: Sequence[str] | None = None) -> int:
    """Do what was typed; answers the exit code."""
    arguments = build_parser().parse_args(argv)
    try:
        module = importlib.import_module(COMMANDS[arguments.command])
        return int(getattr(module, f"do_{arguments.command}")(arguments))
    except M1Error as error:
        return _failed(error, debug=arguments.debug)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_INTERRUPTED


def _failed(error: M1Error, *, debug: bool) -> int:
    from m1.infra.redact import redact

    if debug:
        sys.stderr.write(redact("".join(traceback.format_exception(error))))
    sys.stderr.write(f"m1: {redact(str(error))}\n")
    return EXIT_STAGE_FAILED if error.exit_code == EXIT_BAD_INPUT else error.exit_code


if __name__ == "__main__":
    sys.exit(main())
