"""The model card of an exported folder, written from what the run has committed."""

from collections.abc import Mapping
from typing import Any

from m1.infra.manifest import Commit
from m1.model.config import ModelConfig

_SHOWN_METRICS = (
    "loss_first",
    "loss_last",
    "heldout_loss",
    "reward_first",
    "reward_last",
    "accuracy",
    "accuracy_greedy",
)


def model_card(
    commit: Commit, config: ModelConfig, *, rotary_base: float, window_tokens: int
) -> str:
    """README.md of the folder; `commit` is that of the stage whose weights are exported."""
    kinds = [config.layer_kind(layer) for layer in range(config.num_layers)]
    sizes = {
        "layers": f"{len(kinds)}, of which {kinds.count('softmax')} softmax, the others lightning",
        "hidden size": config.hidden_size,
        "attention heads x width": f"{config.num_heads} x {config.head_width}",
        "key/value heads of softmax layers": config.num_key_value_heads,
        "experts, per token": f"{config.num_experts}, {config.experts_per_token}",
        "vocabulary": config.vocabulary_size,
        "trained window": f"{window_tokens} tokens",
        "rotary base, width": f"{rotary_base:g}, {config.rotary_width}",
    }
    trained = {
        "stage": commit.stage,
        "commit": f"`{commit.digest}`",
        "committed": commit.committed_at,
        "steps": commit.steps,
        "tokens of this stage": commit.tokens,
        **{name: commit.metrics[name] for name in _SHOWN_METRICS if name in commit.metrics},
    }
    return "\n".join(
        [
            "---",
            "library_name: transformers",
            "pipeline_tag: text-generation",
            "---",
            f"# {commit.run}",
            "",
            f"Weights of stage `{commit.stage}` of run `{commit.run}`, trained with the M1 "
            "pipeline.",
            *_table("Model", sizes),
            *_table("Training", trained),
            *_table("Read from", {name: f"`{digest}`" for name, digest in commit.parents.items()}),
            *_table("Versions", commit.versions),
            "",
        ]
    )


def _table(title: str, rows: Mapping[str, Any]) -> list[str]:
    cells = (f"| {_cell(name)} | {_cell(value)} |" for name, value in rows.items())
    return ["", f"## {title}", "", "| | |", "|---|---|", *cells]


def _cell(value: object) -> str:
    """One line that cannot break out of its cell."""
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return " ".join(text.split()).replace("|", "\\|")
