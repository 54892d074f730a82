"""What a corpus says about itself: stats.json and the README.md beside it. Decides nothing."""

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from m1.data_recipes.document import Document
from m1.data_recipes.recipe import Recipe


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What only tokenising can tell. Entropy in nats, of single held-out tokens."""

    vocabulary_size: int
    tokens: Mapping[str, Mapping[str, int]]
    unigram_entropy: float
    task_counts: Mapping[str, int]


def entropy_nats(counts: Mapping[int, int]) -> float:
    """Entropy of a distribution given by counts; 0 when there are none."""
    total = sum(counts.values())
    return -sum(n / total * math.log(n / total) for n in counts.values() if n)


def _source_stats(documents: Sequence[Document]) -> dict[str, Any]:
    reasons = Counter(
        f"{document.drop_stage}:{document.drop_reason}"
        for document in documents
        if document.status != "keep"
    )
    by_status = Counter(document.status for document in documents)
    return {
        "in": len(documents),
        "kept": by_status["keep"],
        "dropped": by_status["drop"],
        "quarantined": by_status["quarantine"],
        "reasons": dict(sorted(reasons.items())),
        "kept_characters": sum(len(d.text) for d in documents if d.status == "keep"),
        "tokens": sum(d.token_count for d in documents),
        "licences": sorted({document.licence for document in documents}),
    }


def build_stats(
    recipe: Recipe, documents: Sequence[Document], measured: Measured, *, seed: int
) -> dict[str, Any]:
    """Counts per source and kind; `in` = `kept` + `dropped` + `quarantined` everywhere."""
    by_source: dict[str, list[Document]] = defaultdict(list)
    for document in documents:
        by_source[document.source].append(document)
    total = _source_stats(documents)
    return {
        "recipe": recipe.name,
        "recipe_digest": recipe.digest,
        "seed": seed,
        "documents": {key: total[key] for key in ("in", "kept", "dropped", "quarantined")},
        "reasons": total["reasons"],
        "sources": {name: _source_stats(by_source[name]) for name in sorted(by_source)},
        "tokens": measured.tokens,
        "vocabulary_size": measured.vocabulary_size,
        "characters_per_token": _fertility(documents),
        "unigram_entropy_nats": round(measured.unigram_entropy, 6),
        "tasks": measured.task_counts,
        "question_answer_pairs": sum(len(d.pairs) for d in documents if d.status == "keep"),
    }


def _fertility(documents: Sequence[Document]) -> dict[str, float]:
    characters: Counter[str] = Counter()
    tokens: Counter[str] = Counter()
    for document in documents:
        characters[document.kind] += len(document.text) if document.token_count else 0
        tokens[document.kind] += document.token_count
    return {
        kind: round(characters[kind] / tokens[kind], 4) for kind in sorted(tokens) if tokens[kind]
    }


def dataset_card(stats: Mapping[str, Any]) -> str:
    """The README of a corpus, in Markdown."""
    documents = stats["documents"]
    lines = [
        f"# Corpus of recipe `{stats['recipe']}`",
        "",
        f"{documents['kept']} documents kept of {documents['in']} read "
        f"({documents['dropped']} dropped, {documents['quarantined']} in quarantine). "
        "All text is natural; nothing was written by a model.",
        "",
        "| source | in | kept | tokens | licences | left out |",
        "|---|---|---|---|---|---|",
        *(_card_row(name, source) for name, source in stats["sources"].items()),
        "",
        "| kind | train tokens | held-out tokens | characters per token |",
        "|---|---|---|---|",
        *(
            f"| {kind} | {split['train']} | {split['heldout']} "
            f"| {stats['characters_per_token'].get(kind, 0.0):.2f} |"
            for kind, split in stats["tokens"].items()
        ),
        "",
        f"Vocabulary: {stats['vocabulary_size']} pieces. Entropy of single held-out tokens: "
        f"{stats['unigram_entropy_nats']:.3f} nats.",
        "",
        "Made by recipe digest `" + stats["recipe_digest"] + f"`, seed {stats['seed']}.",
    ]
    return "\n".join(lines) + "\n"


def _card_row(name: str, source: Mapping[str, Any]) -> str:
    licences = ", ".join(source["licences"][:4]) + (" ..." if len(source["licences"]) > 4 else "")
    reasons = ", ".join(f"{reason} {count}" for reason, count in source["reasons"].items())
    safe = licences.replace("|", "/")
    return (
        f"| {name} | {source['in']} | {source['kept']} | {source['tokens']} | {safe} | {reasons} |"
    )
