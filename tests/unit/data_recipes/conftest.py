"""A small tokenizer shared by the tests of this room."""

from pathlib import Path

import pytest

from m1.data_recipes.tokenizer import Tokenizer, train_tokenizer

TEXT = "def fold(values):\n    total = 0\n    for value in values:\n        total += value\n"


@pytest.fixture(scope="session")
def tokenizer_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    sources = sorted(Path(__file__).parents[3].glob("infra/*.py"))
    texts = [source.read_text(encoding="utf-8") for source in sources]
    train_tokenizer([TEXT, *texts], path, vocabulary_size=640, seed=1)
    return path


@pytest.fixture(scope="session")
def tokenizer(tokenizer_path: Path) -> Tokenizer:
    return Tokenizer.load(tokenizer_path)
