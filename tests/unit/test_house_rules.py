"""The shape of the house, computed from the syntax trees: a ratchet, not a style preference."""

import ast
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("flows", "stages", "model", "data_recipes", "infra")
FILES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))
LONGEST_FILE = 450
LONGEST_FUNCTION = 60

# room -> top-level names and rooms that must not be imported anywhere in it
FORBIDDEN = {
    "infra": {"m1.flows", "m1.stages", "m1.model", "m1.data_recipes", "prefect"},
    "data_recipes": {"m1.flows", "m1.stages", "m1.model", "prefect", "boto3"},
    "model": {"m1.flows", "m1.stages", "m1.data_recipes", "m1.infra.store", "prefect", "boto3"},
    "stages": {"m1.flows", "prefect"},
    "flows": {"torch", "megatron"},
}


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def _imports(tree: ast.AST) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


@pytest.mark.parametrize("path", FILES, ids=_name)
def test_imports_go_one_way(path: Path) -> None:
    room = path.relative_to(ROOT).parts[0]

    wrong = {
        name
        for name in _imports(ast.parse(path.read_text()))
        for banned in FORBIDDEN[room]
        if name == banned or name.startswith(banned + ".")
    }

    assert not wrong


@pytest.mark.parametrize("path", FILES, ids=_name)
def test_every_file_says_what_it_is(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text()))


@pytest.mark.parametrize("path", FILES, ids=_name)
def test_a_file_is_one_sitting_long_and_its_functions_fit_a_screen(path: Path) -> None:
    source = path.read_text()

    too_long = [
        f"{node.name}: {node.end_lineno - node.lineno + 1}"
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno is not None
        and node.end_lineno - node.lineno + 1 > LONGEST_FUNCTION
    ]

    assert len(source.splitlines()) <= LONGEST_FILE
    assert not too_long


def test_every_package_of_the_tree_is_in_the_wheel() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]

    in_tree = {
        "m1." + ".".join(path.parent.relative_to(ROOT).parts)
        for path in FILES
        if path.name == "__init__.py"
    }

    assert set(settings["packages"]) == in_tree
    assert set(settings["package-dir"]) == in_tree


def test_no_door_is_left_open() -> None:
    doors = re.compile(
        r"\bpickle\.loads?\(|\byaml\.load\(|shell=True|(^|[^.\w])(eval|exec)\(", re.M
    )

    found = [_name(path) for path in FILES if doors.search(path.read_text())]

    assert not found
