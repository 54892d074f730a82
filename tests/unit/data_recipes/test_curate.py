"""Claims about recipes, readers and the whole of curation on a tiny corpus."""

import hashlib
import json
from pathlib import Path

import pytest

from m1.data_recipes.curate import STEPS, CurateProgress, CurateSummary, curate
from m1.data_recipes.decontaminate import drop_contaminated, has_heldout_prompt
from m1.data_recipes.dedup import clusters
from m1.data_recipes.document import Document
from m1.data_recipes.filters import scores
from m1.data_recipes.pack import TokenShards
from m1.data_recipes.readers import (
    licence_of,
    read_docstrings,
    read_doctests,
    read_html,
    strip_inline_html,
)
from m1.data_recipes.recipe import Recipe, load_recipe, parse_yaml
from m1.data_recipes.tables import read_tasks
from m1.data_recipes.tasks.families import make_tasks
from m1.data_recipes.tokenizer import Tokenizer
from m1.infra.errors import BadInputError, InvalidSettingError

PROSE = (
    "The harbour lay quiet that morning, and number {n} of the boats had not come back. "
    "People stood on the pier and counted the sails; nobody wanted to say what all of them "
    "thought about the weather of day {n}.\n"
)
CODE = '''"""Module {n} of the tiny corpus, which shows how a value of {n} is doubled."""


def double_{n}(value):
    """Twice the value.

    >>> double_{n}({n})
    {twice}
    """
    return value * 2 + {n} - {n}  # <end_of_document>
'''


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for n in range(11, 23):
        (corpus / f"module_{n}.py").write_text(CODE.format(n=n, twice=2 * n))
        (corpus / f"story_{n}.txt").write_text("".join(PROSE.format(n=n * k) for k in range(1, 4)))
    same = (corpus / "story_11.txt").read_text()
    (corpus / "copy.txt").write_text(same.upper())
    (corpus / "page.html").write_text(
        "<html><head><script>steal()</script></head><body><main><h1>Tides</h1>"
        f"<p>{PROSE.format(n=3) * 2}</p></main></body></html>"
    )
    (corpus / "broken.txt").write_bytes(b"\xff\xfe\x00broken \xd8")
    (corpus / "short.md").write_text("tiny\n")
    prompt = make_tasks("max_fold", count=1, difficulty=4, seed=9, split="heldout")[0].prompt
    (corpus / "leak.md").write_text(PROSE.format(n=77) * 2 + f"Fill {prompt} in.\n")
    return corpus


@pytest.fixture
def recipe() -> Recipe:
    counts = {"difficulty": 4, "sft": 20, "reinforce": 10, "heldout": 5}
    fields = load_recipe("toy").model_dump() | {"tasks": {"max_fold": counts, "any_high": counts}}
    return Recipe.model_validate(fields)


def _curate(recipe: Recipe, corpus: Path, output: Path) -> CurateSummary:
    return curate(
        recipe,
        corpus=corpus,
        output=output,
        seed=5,
        vocabulary_size=600,
        report=lambda progress: None,
    )


def _digests(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_curating_twice_gives_the_same_bytes(recipe: Recipe, folder: Path, tmp_path: Path) -> None:
    _curate(recipe, folder, tmp_path / "one")
    _curate(recipe, folder, tmp_path / "two")

    digests = _digests(tmp_path / "one")
    assert digests == _digests(tmp_path / "two")
    assert {"README.md", "stats.json", "tokenizer/tokenizer.model", "tasks/sft.parquet"} <= set(
        digests
    )


def test_every_document_is_accounted_for(recipe: Recipe, folder: Path, tmp_path: Path) -> None:
    summary = _curate(recipe, folder, tmp_path / "out")
    stats = json.loads((tmp_path / "out" / "stats.json").read_text())

    for counts in (stats["documents"], *stats["sources"].values()):
        assert counts["in"] == counts["kept"] + counts["dropped"] + counts["quarantined"]
    assert summary.documents_in == sum(source["in"] for source in stats["sources"].values())
    assert summary.documents_quarantined == 1
    assert stats["reasons"]["read:unreadable"] == 1
    assert stats["reasons"]["filter:too_short"] == 1
    assert stats["reasons"]["dedup:exact_duplicate"] == 1
    assert stats["reasons"]["decontaminate:heldout_prompt"] == 1
    assert stats["question_answer_pairs"] >= 1


def test_shards_hold_what_the_stats_say(recipe: Recipe, folder: Path, tmp_path: Path) -> None:
    summary = _curate(recipe, folder, tmp_path / "out")
    tokenizer = Tokenizer.load(tmp_path / "out" / "tokenizer" / "tokenizer.model")

    for split in ("train", "heldout"):
        shards = TokenShards.open(tmp_path / "out" / "shards", split)
        for kind in shards.kinds:
            assert shards.tokens(kind) == summary.tokens[kind][split]
            for number in range(shards.documents(kind)):
                tokens = shards.document(kind, number).tolist()
                assert tokens.count(tokenizer.end_of_document_id) == 1  # not from the text
                assert tokens[-1] == tokenizer.end_of_document_id
    pages = TokenShards.open(tmp_path / "out" / "shards", "train")
    assert "steal" not in "".join(
        tokenizer.decode(pages.document("web", i).tolist()) for i in range(pages.documents("web"))
    )


def test_task_tables_are_read_back(recipe: Recipe, folder: Path, tmp_path: Path) -> None:
    _curate(recipe, folder, tmp_path / "out")

    tasks = read_tasks(tmp_path / "out" / "tasks" / "heldout.parquet")

    made = make_tasks("max_fold", count=5, difficulty=4, seed=5, split="heldout")
    assert len(tasks) == 10
    assert {task.id: task for task in made}.items() <= {task.id: task for task in tasks}.items()


def test_progress_goes_through_all_steps(recipe: Recipe, folder: Path, tmp_path: Path) -> None:
    seen: list[CurateProgress] = []

    curate(
        recipe,
        corpus=folder,
        output=tmp_path / "o",
        seed=1,
        vocabulary_size=600,
        report=seen.append,
    )

    assert list(dict.fromkeys(progress.step for progress in seen)) == list(STEPS)
    assert [progress.done for progress in seen] == sorted(progress.done for progress in seen)


def test_empty_folder_names_itself_and_what_is_accepted(recipe: Recipe, tmp_path: Path) -> None:
    empty = tmp_path / "nothing-here"
    empty.mkdir()

    with pytest.raises(BadInputError, match=r"nothing-here.*\*\.html.*\*\.py"):
        _curate(recipe, empty, tmp_path / "out")


def test_missing_folder_is_named(recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="absent"):
        _curate(recipe, tmp_path / "absent", tmp_path / "out")


def test_links_out_of_the_folder_are_not_followed(
    recipe: Recipe, folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "secret.txt").write_text("the secret plan of the harbour " * 20)
    (folder / "link.txt").symlink_to(tmp_path / "secret.txt")

    _curate(recipe, folder, tmp_path / "out")

    card = (tmp_path / "out" / "corpus" / "documents.parquet").read_bytes()
    assert b"link.txt" not in card


def test_html_becomes_plain_text() -> None:
    page = "<html><body><p>Tea &amp; <b>salt</b></p><script>x()</script></body></html>"

    assert read_html(page)[0].text.split() == ["Tea", "&", "salt"]


def test_inline_html_goes_and_code_fences_stay() -> None:
    markup = '# Name\n\n<p align="center"><img src="x"> Fast</p>\n\n```html\n<b>kept</b>\n```\n'

    stripped = strip_inline_html(markup)

    assert "<p" not in stripped
    assert "Fast" in stripped
    assert "<b>kept</b>" in stripped


def test_doctests_become_pairs_with_true_spans() -> None:
    source = (
        'def f():\n    """Adds.\n\n    >>> 1 + 1\n    2\n    >>> x = (\n    ...   3)\n    """\n'
    )

    extract = read_doctests(source)[0]

    pair = extract.pairs[0]
    assert extract.text == ">>> 1 + 1\n2\n>>> x = (\n...   3)\n"
    assert extract.text[pair.question_start : pair.question_end] == ">>> 1 + 1\n"
    assert extract.text[pair.answer_start : pair.answer_end] == "2\n"
    assert len(extract.pairs) == 1


def test_docstrings_leave_their_examples_to_the_pairs() -> None:
    prose = "Explains the thing at length. " * 8
    source = f'"""{prose}\n\n>>> 40 + 2\n42\n"""\n'

    assert read_docstrings(source)[0].text == prose.strip()


def test_licence_comes_from_metadata() -> None:
    assert licence_of("Name: x\nLicense-Expression: MIT\n\nbody") == "MIT"
    assert licence_of("Name: x\nClassifier: License :: OSI Approved :: BSD License\n") == (
        "BSD License"
    )
    assert licence_of("Name: x\n") == "unknown"


def test_only_heldout_prompts_contaminate() -> None:
    heldout = make_tasks("min_fold", count=20, difficulty=5, seed=1, split="heldout")
    others = make_tasks("min_fold", count=20, difficulty=5, seed=1, split="sft")

    assert all(has_heldout_prompt(f"see {task.prompt}.") for task in heldout)
    assert not any(has_heldout_prompt(f"see {task.prompt}.") for task in others)
    document = Document(
        id="1", source="s", uri="u", licence="MIT", kind="web", text=heldout[0].prompt
    )
    assert drop_contaminated([document])[0].drop_reason == "heldout_prompt"


def test_clusters_are_represented_by_their_smallest_member() -> None:
    assert clusters([(3, 4), (1, 3), (5, 2)], 6) == [0, 1, 2, 1, 1, 2]


def test_scores_see_letters_and_repetition() -> None:
    measured = scores("word word\nword word\n1234 5678\n")

    assert measured["words"] == 4
    assert measured["alpha_share"] == pytest.approx(16 / 24)
    assert measured["repeated_line_share"] == pytest.approx(1 / 3)
    assert scores("")["alpha_share"] == 0.0


@pytest.mark.parametrize(
    ("body", "message"),
    [
        pytest.param(b"a: &x 1\nb: *x\n", "aliases", id="alias"),
        pytest.param(b"a: 1\na: 2\n", "stands twice", id="duplicate"),
        pytest.param(b"a: !!python/object/apply:os.abort []\n", "safe YAML", id="object"),
        pytest.param(b"- 1\n", "settings by name", id="list"),
        pytest.param(b"a: [" * 2000, "safe YAML", id="deep"),
        pytest.param(b"#" * 300_000, "262144", id="large"),
    ],
)
def test_dangerous_yaml_is_refused(body: bytes, message: str) -> None:
    with pytest.raises(InvalidSettingError, match=message):
        parse_yaml(body)


def test_unknown_recipe_names_the_known_ones() -> None:
    with pytest.raises(InvalidSettingError, match="toy"):
        load_recipe("nonsense")


def test_unknown_key_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("extends: toy\nname: own\nheldout: {shares: 0.1}\n")

    with pytest.raises(InvalidSettingError, match=r"recipe\.heldout\.shares"):
        load_recipe(str(tmp_path / "own.yaml"))


def test_extending_changes_one_number_and_the_digest(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("extends: toy\nname: own\nheldout: {share: 0.1}\n")

    own, toy = load_recipe(str(tmp_path / "own.yaml")), load_recipe("toy")

    assert own.heldout.share == 0.1
    assert own.heldout.long_documents == toy.heldout.long_documents
    assert own.digest != toy.digest
    assert toy.digest == load_recipe("toy").digest


def test_recipes_that_extend_each_other_are_refused(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("extends: own.yaml\nname: own\n")

    with pytest.raises(InvalidSettingError, match="extends"):
        load_recipe(str(tmp_path / "own.yaml"))
