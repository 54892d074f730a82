"""Parquet tables of documents and tasks. Writing only sorted rows is the callers' duty."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from m1.data_recipes.document import Document
from m1.data_recipes.tasks.families import Task
from m1.infra.errors import BadInputError

_TASK_FIELDS = tuple(field.name for field in dataclasses.fields(Task))


def _write(path: Path, columns: dict[str, list[Any]], schema: Any) -> None:
    import pyarrow
    import pyarrow.parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    table = pyarrow.table(columns, schema=schema)
    partial = path.with_suffix(".partial")
    pyarrow.parquet.write_table(table, partial, compression="zstd")
    partial.rename(path)


def write_documents(path: Path, documents: Sequence[Document]) -> None:
    """One row per document read, kept or not, with every decision."""
    import pyarrow

    text, whole = pyarrow.string(), pyarrow.int64()
    span = pyarrow.struct(
        [(field, whole) for field in ("question_start", "question_end")]
        + [(field, whole) for field in ("answer_start", "answer_end")]
    )
    types: dict[str, Any] = {
        field.name: text for field in dataclasses.fields(Document) if field.name != "token_count"
    }
    types |= {"pairs": pyarrow.list_(span), "token_count": whole}
    columns = {
        name: [getattr(document, name) for document in documents]
        for name in types
        if name not in ("pairs", "attributes")
    }
    columns["pairs"] = [
        [dataclasses.asdict(pair) for pair in document.pairs] for document in documents
    ]
    columns["attributes"] = [
        json.dumps({key: round(value, 6) for key, value in sorted(document.attributes.items())})
        for document in documents
    ]
    _write(path, {name: columns[name] for name in types}, pyarrow.schema(list(types.items())))


def write_tasks(path: Path, tasks: Sequence[Task]) -> None:
    """One row per task."""
    import pyarrow

    whole = ("difficulty", "seed")
    schema = pyarrow.schema(
        [(name, pyarrow.int64() if name in whole else pyarrow.string()) for name in _TASK_FIELDS]
    )
    _write(path, {name: [getattr(task, name) for task in tasks] for name in _TASK_FIELDS}, schema)


def read_tasks(path: Path) -> list[Task]:
    """Tasks that `write_tasks` wrote.

    Raises:
        BadInputError: missing, or another table.
    """
    import pyarrow
    import pyarrow.parquet

    if not path.is_file():
        raise BadInputError(f"no tasks at {path}")
    try:
        rows = pyarrow.parquet.read_table(path, columns=list(_TASK_FIELDS)).to_pylist()
        return [Task(**row) for row in rows]
    except (pyarrow.ArrowException, TypeError) as error:
        raise BadInputError(f"{path.name} is not a table of tasks: {error}") from error
