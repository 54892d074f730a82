"""`m1 bench`: the claims of this project, measured again. Each is a file in `benchmarks/`.

A benchmark is a program of the source tree, not of the installed package: it writes its dated
result beside itself.
"""

import argparse
import ast
import subprocess
import sys
from pathlib import Path

from m1.flows.accepted import unknown_name
from m1.flows.commands_look import print_json
from m1.flows.screen import show_table
from m1.infra.errors import EXIT_OK, EXIT_STAGE_FAILED, UsageError


def do_bench(arguments: argparse.Namespace) -> int:
    """List the benchmarks, or run one with whatever words follow its name."""
    known = benchmarks(folder())
    if arguments.name is None:
        if arguments.json:
            print_json({"benchmarks": known})
        else:
            show_table("benchmarks", ("name", "question"), [list(row) for row in known.items()])
        return EXIT_OK
    if arguments.name not in known:
        raise unknown_name("benchmark", arguments.name, tuple(known))
    words = [sys.executable, str(folder() / f"{arguments.name}.py"), *arguments.words]
    done = subprocess.run(words, check=False)  # noqa: S603  (a file of ours)
    return EXIT_OK if done.returncode == 0 else EXIT_STAGE_FAILED


def folder() -> Path:
    """Where the benchmarks are.

    Raises:
        UsageError: this is an installed package without its source tree.
    """
    found = Path(__file__).resolve().parents[1] / "benchmarks"
    if not found.is_dir():
        raise UsageError("m1 bench runs in a checkout of the source: benchmarks are not installed")
    return found


def benchmarks(where: Path) -> dict[str, str]:
    """First sentence of every runnable file, by name; read, not imported."""
    found = {}
    for path in sorted(where.glob("*.py")):
        text = path.read_text()
        if '__name__ == "__main__"' in text:
            found[path.stem] = (ast.get_docstring(ast.parse(text)) or "").split("\n")[0]
    return found
