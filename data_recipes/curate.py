"""From raw files to tokenizer, shards and tasks: the steps in order, one verb each.

The same recipe, sources and seed give the same bytes in every file. Nothing here trains a model.

    output/tokenizer/tokenizer.model       output/shards/{kind}.{train,heldout}.{bin,idx}
    output/tasks/{sft,reinforce,heldout}.parquet
    output/corpus/documents.parquet        output/stats.json        output/README.md
"""

import dataclasses
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from m1.data_recipes.corpus import read_corpus
from m1.data_recipes.dataset_card import Measured, build_stats, dataset_card, entropy_nats
from m1.data_recipes.decontaminate import drop_contaminated, split_heldout
from m1.data_recipes.dedup import drop_exact_duplicates, drop_near_duplicates
from m1.data_recipes.document import Document, digest_of
from m1.data_recipes.filters import score_and_filter
from m1.data_recipes.recipe import Recipe
from m1.data_recipes.shards import write_shard
from m1.data_recipes.tables import write_documents, write_tasks
from m1.data_recipes.tasks.families import Split as TaskSplit
from m1.data_recipes.tasks.families import make_tasks
from m1.data_recipes.tokenizer import Tokenizer, train_tokenizer

TASK_SPLITS: tuple[TaskSplit, ...] = ("sft", "reinforce", "heldout")
STEPS = ("read", "filter", "dedup", "split", "tokenizer", "tokenise", "tasks", "report")


@dataclass(frozen=True, slots=True, kw_only=True)
class CurateProgress:
    """Where curation stands: step `done` of `total`, and a word about it."""

    step: str
    done: int
    total: int
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CurateSummary:
    """What came out. `tokens[kind][split]` counts end-of-document tokens too."""

    documents_in: int
    documents_kept: int
    documents_dropped: int
    documents_quarantined: int
    tokens: Mapping[str, Mapping[str, int]]
    vocabulary_size: int
    characters_per_token: Mapping[str, float]
    unigram_entropy_nats: float
    task_counts: Mapping[str, int]
    recipe_digest: str


Report = Callable[[CurateProgress], None]


def curate(  # the contract of the room, all keyword-only
    recipe: Recipe,
    *,
    corpus: Path | None,
    output: Path,
    seed: int,
    vocabulary_size: int,
    report: Report,
) -> CurateSummary:
    """Carry out `recipe` and write everything below `output`.

    Args:
        recipe: what to read and how to decide.
        corpus: folder of documents; None reads what the Python installation carries.
        output: folder to fill; existing files of the same names are replaced.
        seed: decides near-duplicate hashing, the tokenizer's sample and the tasks.
        vocabulary_size: pieces of the tokenizer; fewer if the corpus is too small for them.
        report: called at the beginning of each step.

    Raises:
        BadInputError: the corpus is empty or unusable.
        InvalidSettingError: a number in the recipe cannot be met.
    """
    output.mkdir(parents=True, exist_ok=True)
    documents = _decide(recipe, corpus=corpus, seed=seed, report=report)
    _announce(report, "tokenizer")
    tokenizer = _train(recipe, documents, output=output, seed=seed, vocabulary_size=vocabulary_size)
    _announce(report, "tokenise")
    documents, tokens, entropy = _tokenise(documents, tokenizer, output / "shards")
    write_documents(output / "corpus" / "documents.parquet", documents)
    _announce(report, "tasks")
    measured = Measured(
        vocabulary_size=tokenizer.vocabulary_size,
        tokens=tokens,
        unigram_entropy=entropy,
        task_counts=_write_all_tasks(recipe, output / "tasks", seed=seed),
    )
    _announce(report, "report")
    return _write_report(recipe, documents, measured, output=output, seed=seed)


def _announce(report: Report, step: str, note: str = "") -> None:
    report(CurateProgress(step=step, done=STEPS.index(step), total=len(STEPS), note=note))


def _decide(recipe: Recipe, *, corpus: Path | None, seed: int, report: Report) -> list[Document]:
    """Every document read, sorted by id, with what was decided about it."""
    documents = read_corpus(
        recipe, corpus=corpus, report=lambda name, _done, _total: _announce(report, "read", name)
    )
    _announce(report, "filter")
    documents = score_and_filter(documents, recipe.filters)
    _announce(report, "dedup")
    documents = drop_exact_duplicates(documents)
    documents = drop_near_duplicates(documents, recipe.near_duplicates, seed=seed)
    _announce(report, "split")
    return split_heldout(drop_contaminated(documents), recipe.heldout)


def _sample(documents: Sequence[Document], *, maximum_bytes: int, seed: int) -> Iterator[str]:
    """Training texts in digest order until the sample is full; never a held-out one."""
    train = [d for d in documents if d.status == "keep" and d.split == "train"]
    taken = 0
    for document in sorted(train, key=lambda d: digest_of(str(seed), "tokenizer", d.id)):
        if taken >= maximum_bytes:
            return
        taken += len(document.text.encode("utf-8", errors="replace"))
        yield document.text


def _train(
    recipe: Recipe,
    documents: Sequence[Document],
    *,
    output: Path,
    seed: int,
    vocabulary_size: int,
) -> Tokenizer:
    path = output / "tokenizer" / "tokenizer.model"
    sample = _sample(documents, maximum_bytes=recipe.tokenizer_sample_bytes, seed=seed)
    train_tokenizer(sample, path, vocabulary_size=vocabulary_size, seed=seed)
    return Tokenizer.load(path)


def _tokenise(
    documents: Sequence[Document], tokenizer: Tokenizer, directory: Path
) -> tuple[list[Document], dict[str, dict[str, int]], float]:
    """Write shards; returns documents with token counts, tokens per kind, held-out entropy."""
    directory.mkdir(parents=True, exist_ok=True)
    end = tokenizer.end_of_document_id
    result = list(documents)
    ids: dict[tuple[str, str], list[list[int]]] = {}
    heldout: Counter[int] = Counter()
    for place, document in enumerate(documents):
        if document.status != "keep":
            continue
        tokens = [*tokenizer.encode(document.text), end]
        ids.setdefault((document.kind, document.split), []).append(tokens)
        result[place] = dataclasses.replace(document, token_count=len(tokens))
        if document.split == "heldout":
            heldout.update(tokens)
    counts: dict[str, dict[str, int]] = {}
    for (kind, split), shard in sorted(ids.items()):
        _, total = write_shard(
            directory / f"{kind}.{split}", shard, vocabulary_size=tokenizer.vocabulary_size
        )
        counts.setdefault(kind, {"train": 0, "heldout": 0})[split] = total
    return result, counts, entropy_nats(heldout)


def _write_all_tasks(recipe: Recipe, directory: Path, *, seed: int) -> dict[str, int]:
    counts: dict[str, int] = {}
    for split in TASK_SPLITS:
        tasks = [
            task
            for family, wanted in sorted(recipe.tasks.items())
            for task in make_tasks(
                family,
                count=int(getattr(wanted, split)),
                difficulty=wanted.difficulty,
                seed=seed,
                split=split,
            )
        ]
        write_tasks(directory / f"{split}.parquet", sorted(tasks, key=lambda task: task.id))
        counts[split] = len(tasks)
    return counts


def _write_report(
    recipe: Recipe,
    documents: Sequence[Document],
    measured: Measured,
    *,
    output: Path,
    seed: int,
) -> CurateSummary:
    stats = build_stats(recipe, documents, measured, seed=seed)
    body = json.dumps(stats, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    (output / "stats.json").write_text(body, encoding="utf-8")
    (output / "README.md").write_text(dataset_card(stats), encoding="utf-8")
    counts = stats["documents"]
    return CurateSummary(
        documents_in=counts["in"],
        documents_kept=counts["kept"],
        documents_dropped=counts["dropped"],
        documents_quarantined=counts["quarantined"],
        tokens=measured.tokens,
        vocabulary_size=measured.vocabulary_size,
        characters_per_token=stats["characters_per_token"],
        unigram_entropy_nats=stats["unigram_entropy_nats"],
        task_counts=measured.task_counts,
        recipe_digest=recipe.digest,
    )
