"""A pipeline small enough for tests: every stage and mechanism, a few steps each."""

import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from m1.stages.registry import DEFAULT_ORDER

MODULES = 60  # files of the standard library, enough text for a tokenizer of 640 pieces

SETTINGS = {
    "model.num_layers": 2,
    "model.softmax_every": 2,
    "model.hidden_size": 32,
    "model.num_heads": 2,
    "model.head_width": 16,
    "model.num_key_value_heads": 1,
    "model.rotary_width": 8,
    "model.num_experts": 2,
    "model.expert_hidden_size": 32,
    "model.vocabulary_size": 640,
    "pretrain.steps": 8,
    "pretrain.window_tokens": 64,
    "pretrain.windows_per_step": 4,
    "pretrain.micro_batch_windows": 2,
    "pretrain.heldout_tokens": 1024,
    "pretrain.checkpoint_every_steps": 2,
    "sft.steps": 4,
    "sft.window_tokens": 64,
    "sft.windows_per_step": 4,
    "sft.micro_batch_windows": 2,
    "sft.examples": 64,
    "sft.evaluation_problems": 4,
    **{
        f"extend-{name}.{setting}": value
        for name, window in (("32k", 64), ("128k", 128), ("512k", 256), ("1m", 512))
        for setting, value in {
            "window_tokens": window,
            "steps": 2,
            "windows_per_step": 2,
            "micro_batch_windows": 1,
            "examples": 32,
            "heldout_tokens": 1024,
            "short_window_tokens": 64,
            "evaluation_problems": 4,
            "checkpoint_every_steps": 1,
        }.items()
    },
    **{
        f"reinforce-{name}.{setting}": value
        for name in ("40k", "80k")
        for setting, value in {
            "steps": 4,
            "window_tokens": 32,
            "prompts_per_step": 2,
            "samples_per_prompt": 4,
            "updates_per_step": 2,
            "resample_rounds": 1,
            "evaluation_problems": 4,
            "evaluation_tokens": 32,
            "checkpoint_every_steps": 1,
            # an untrained model never answers right: reward what it writes, so that there is signal
            "format_reward": 0.5,
        }.items()
    },
    "reinforce-80k.windows": "[16, 24]",
    "evaluate.heldout_tokens": 512,
    "evaluate.window_tokens": 64,
    "evaluate.problems": 4,
    "evaluate.evaluation_tokens": 32,
    "evaluate.needle_lengths": "[256]",
    "evaluate.needle_trials": 1,
    "export.parity_tokens": 64,
}


def corpus(directory: Path) -> Path:
    """A folder of real source files."""
    directory.mkdir(parents=True, exist_ok=True)
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"), key=lambda p: p.name)
    for path in [p for p in files if p.stat().st_size > 8_000][:MODULES]:
        shutil.copy(path, directory / path.name)
    return directory


def command(*words: str) -> list[str]:
    """`m1 ...` as an argument list."""
    return [sys.executable, "-m", "m1.flows.cli", *words]


def settings(folder: Path, **changes: object) -> list[str]:
    """`--set` arguments of the tiny pipeline over the documents of `folder`."""
    chosen = {"curate.corpus": str(folder), **SETTINGS, **changes}
    order = str(chosen.get("run.order", ",".join(DEFAULT_ORDER))).split(",")
    places = {*order, "run", "model", "layout"}
    used = {name: value for name, value in chosen.items() if name.split(".")[0] in places}
    return [word for name, value in used.items() for word in ("--set", f"{name}={value}")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a tiny run lives: a home of its own, and perhaps another store than its default."""

    home: Path
    store: str | None = None
    credentials: Mapping[str, str] = field(default_factory=dict)

    def environment(self) -> dict[str, str]:
        """Nothing of the user's machine is touched."""
        kept = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
        home = {"HOME": str(self.home), "M1_HOME": str(self.home / "m1")}
        store = {"M1_STORE": self.store} if self.store else {}
        return {**kept, **self.credentials, **home, **store, "OMP_NUM_THREADS": "1"}

    def m1(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run one command to its end; it must succeed."""
        done = subprocess.run(
            command(*words), env=self.environment(), capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise AssertionError(
                f"m1 {words[0]} gave {done.returncode}:\n{done.stdout}\n{done.stderr}"
            )
        return done
