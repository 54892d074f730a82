"""Is decoding fast enough for the inner loop of RL? Our decoder beside transformers' `generate`.

    .venv/bin/python benchmarks/decode.py

Both sides complete the same prompts with the same weights (transformers reads the exported
folder), by turns in one process on one thread. Seconds are processor seconds: on a shared machine
they say what the work costs, not how busy the neighbours are; wall seconds stand beside them.
Writes `benchmarks/results/<date>-decode.md` and `.json`.
"""

import argparse
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
import transformers
from measured_on import machine
from transformers import AutoModelForCausalLM, StoppingCriteria, StoppingCriteriaList

from m1.flows.preset import load_preset
from m1.model.config import ModelConfig
from m1.model.decode import Decoder, Request
from m1.model.decode_network import weight_shapes
from m1.model.hf_weights import export_hugging_face
from m1.model.sampling import Sampling

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
TOY = load_preset("toy").model
SHAPES = {
    "toy": TOY,
    "4M": TOY.model_copy(
        update={"hidden_size": 128, "head_width": 32, "rotary_width": 16, "expert_hidden_size": 224}
    ),
}
PROMPT_TOKENS, NEW_TOKENS = 32, 96
CONTEXTS = (1024, 2048, 4096, 8192, 16384, 32768)
FLAT_ROWS, FLAT_STEPS = 4, 64
UNEQUAL_REQUESTS = 96


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """Prompts with the number of tokens to write after each."""

    prompts: Sequence[Sequence[int]]
    lengths: Sequence[int]

    @property
    def new_tokens(self) -> int:
        """Tokens to write over all prompts."""
        return sum(self.lengths)


def random_weights(config: ModelConfig) -> dict[str, torch.Tensor]:
    """Weights under which no token is sure: nothing stops early."""
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(shape, generator=generator) * 0.05 + (len(shape) == 1)
        for name, shape in weight_shapes(config).items()
    }


def equal_job(rows: int) -> Job:
    """Prompts and answers of one length: the case that suits static batches."""
    rng = random.Random(rows)  # noqa: S311
    prompts = [[rng.randrange(8, 2048) for _ in range(PROMPT_TOKENS)] for _ in range(rows)]
    return Job(prompts=prompts, lengths=[NEW_TOKENS] * rows)


def unequal_job(rows: int, *, answers: str) -> Job:
    """Prompts of 8 to 1,024 tokens, evenly in the logarithm; answers alike or all of 32 tokens."""
    rng = random.Random(rows)  # noqa: S311

    def draw(low: int, high: int) -> int:
        return int(low * (high / low) ** rng.random())

    prompts = [[rng.randrange(8, 2048) for _ in range(draw(8, 1024))] for _ in range(rows)]
    lengths = [draw(8, 512) if answers == "unequal" else 32 for _ in range(rows)]
    return Job(prompts=prompts, lengths=lengths)


class EnoughTokens(StoppingCriteria):
    """Ends each row after its own number of new tokens, as an end token would."""

    def __init__(self, prompt_tokens: int, lengths: Sequence[int]) -> None:
        self.ends = torch.tensor(lengths) + prompt_tokens

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_: Any) -> torch.Tensor:
        """Which rows are done."""
        return input_ids.shape[1] >= self.ends


@torch.no_grad()
def run_transformers(model: Any, job: Job, *, batch: int) -> None:
    """Static batches in the order of the prompts, padded on the left."""
    for start in range(0, len(job.prompts), batch):
        prompts = job.prompts[start : start + batch]
        lengths = job.lengths[start : start + batch]
        longest = max(map(len, prompts))
        ids = torch.tensor([[0] * (longest - len(p)) + list(p) for p in prompts])
        mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
        model.generate(
            ids, attention_mask=mask, max_new_tokens=max(lengths), do_sample=True,
            temperature=1.0, top_k=0, top_p=1.0, pad_token_id=0, eos_token_id=None,
            stopping_criteria=StoppingCriteriaList([EnoughTokens(longest, lengths)]),
        )  # fmt: skip


def run_ours(decoder: Decoder, job: Job, *, batch: int) -> None:
    """Continuous batching; log-probabilities come along."""
    requests = [
        Request(prompt_token_ids=prompt, max_new_tokens=length, seed=number)
        for number, (prompt, length) in enumerate(zip(job.prompts, job.lengths, strict=True))
    ]
    done = decoder.generate(requests, Sampling(), max_batch=batch)
    assert sum(len(completion.token_ids) for completion in done) == job.new_tokens


def measured(work: Callable[[], None]) -> tuple[float, float]:
    """Processor seconds and wall seconds."""
    wall, processor = time.perf_counter(), time.process_time()
    work()
    return time.process_time() - processor, time.perf_counter() - wall


def side_by_side(sides: dict[str, Callable[[], None]], repeats: int) -> dict[str, Any]:
    """Median seconds of each side, taken by turns after one round that is not counted."""
    rounds: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    for number in range(repeats + 1):
        for name, work in sides.items():
            seconds = measured(work)
            if number:
                rounds[name].append(seconds)
    return {
        name: {
            "processor_seconds": statistics.median(one for one, _ in seconds),
            "wall_seconds": statistics.median(one for _, one in seconds),
            "all_processor_seconds": [round(one, 4) for one, _ in seconds],
        }
        for name, seconds in rounds.items()
    }


def compare(config: ModelConfig, job: Job, *, batch: int, repeats: int) -> dict[str, Any]:
    """Tokens per second of both sides."""
    weights = random_weights(config)
    decoder = Decoder(weights, config)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "hf"
        export_hugging_face(
            weights, config, folder, dtype=torch.float32, rotary_base=config.rotary_base,
            window_tokens=65_536,
        )  # fmt: skip
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    seconds = side_by_side(
        {
            "ours": lambda: run_ours(decoder, job, batch=batch),
            "transformers": lambda: run_transformers(model, job, batch=batch),
        },
        repeats,
    )
    for side in seconds.values():
        side["tokens_per_second"] = job.new_tokens / side["processor_seconds"]
        side["tokens_per_wall_second"] = job.new_tokens / side["wall_seconds"]
    ratio = seconds["ours"]["tokens_per_second"] / seconds["transformers"]["tokens_per_second"]
    return {**seconds, "new_tokens": job.new_tokens, "ratio": ratio}


def flat(config: ModelConfig) -> dict[str, Any]:
    """Milliseconds per step after each context length, for a model of lightning layers only."""
    lightning = config.model_copy(update={"softmax_every": config.num_layers + 1})
    decoder = Decoder(random_weights(lightning), lightning)
    sampling = Sampling(repetition_tokens=0)
    rng = random.Random(0)  # noqa: S311
    rows = [[rng.randrange(8, 2048) for _ in range(max(CONTEXTS))] for _ in range(FLAT_ROWS)]
    steps: dict[int, list[float]] = {context: [] for context in CONTEXTS}
    engines = {}
    for context in CONTEXTS:
        engine = decoder.engine(max_batch=FLAT_ROWS)
        for number, row in enumerate(rows):
            request = Request(
                prompt_token_ids=row[:context], max_new_tokens=8 * FLAT_STEPS, seed=number
            )
            engine.submit(request, sampling)
        while engine.is_reading:
            engine.step()
        engines[context] = engine
    for _ in range(5):  # by turns, so that a busy neighbour touches all lengths alike
        for context, engine in engines.items():
            seconds, _wall = measured(
                lambda engine=engine: [engine.step() for _ in range(FLAT_STEPS)]
            )
            steps[context].append(1e3 * seconds / FLAT_STEPS)
    medians = {str(context): statistics.median(times) for context, times in steps.items()}
    return {
        "milliseconds_per_step": medians,
        "spread": max(medians.values()) / min(medians.values()) - 1,
    }


def surroundings() -> dict[str, Any]:
    """Where this was measured, and between what."""
    return {
        **machine(),
        "threads used": 1,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def measure(repeats: int) -> dict[str, Any]:
    """Every case by name."""
    cases: dict[str, Any] = {}
    for shape, config in SHAPES.items():
        for batch in (32, 128):
            name = f"{shape}, batch {batch}, equal lengths"
            cases[name] = compare(config, equal_job(batch), batch=batch, repeats=repeats) | {
                "asked": 1.5
            }
            print(name, f"{cases[name]['ratio']:.2f}", flush=True)
    for answers in ("equal", "unequal"):
        name = f"4M, batch 32, {UNEQUAL_REQUESTS} unequal prompts, {answers} answers"
        job = unequal_job(UNEQUAL_REQUESTS, answers=answers)
        cases[name] = compare(SHAPES["4M"], job, batch=32, repeats=max(1, repeats // 3)) | {
            "asked": 5.0
        }
        print(name, f"{cases[name]['ratio']:.2f}", flush=True)
    return cases


def write(cases: dict[str, Any], flatness: dict[str, Any], where: dict[str, Any]) -> Path:
    """The dated files; returns the Markdown one."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{datetime.now(UTC):%Y-%m-%d}-decode.md"
    content = {"machine": where, "cases": cases, "flat": flatness}
    path.with_suffix(".json").write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")
    sizes = {
        name: sum(weight.numel() for weight in random_weights(config).values()) / 1e6
        for name, config in SHAPES.items()
    }
    lines = ["# Decoding beside transformers' generate", ""]
    lines += [f"- {name}: {value}" for name, value in where.items()]
    lines += [f"- {name}: {size:.2f}M parameters" for name, size in sizes.items()]
    lines += ["", "Tokens per processor second (per wall second).", ""]
    lines += ["| case | ours | transformers | ratio | asked |", "|---|---|---|---|---|"]
    for name, case in cases.items():
        cells = [
            f"{case[side]['tokens_per_second']:,.0f} ({case[side]['tokens_per_wall_second']:,.0f})"
            for side in ("ours", "transformers")
        ]
        missed = "" if case["ratio"] >= case["asked"] else " **missed**"
        lines.append(
            f"| {name} | {' | '.join(cells)} | {case['ratio']:.2f}{missed} | {case['asked']} |"
        )
    lines += ["", f"Lightning layers only, {FLAT_ROWS} rows: milliseconds per step by context.", ""]
    times = flatness["milliseconds_per_step"]
    lines += ["| " + " | ".join(times) + " | spread | asked |", "|---" * (len(times) + 2) + "|"]
    missed = "" if flatness["spread"] <= 0.2 else " **missed**"
    cells = " | ".join(f"{value:.2f}" for value in times.values())
    lines.append(f"| {cells} | {100 * flatness['spread']:.0f} %{missed} | 20 % |")
    path.write_text("\n".join(lines) + "\n")
    return path


def main() -> int:
    """Measure everything and write the table; fail if a number was missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    where = surroundings()
    cases = measure(arguments.repeats)
    flatness = flat(SHAPES["toy"])
    print(write(cases, flatness, where).read_text())
    missed = [case for case in cases.values() if case["ratio"] < case["asked"]]
    return int(bool(missed) or flatness["spread"] > 0.2)


if __name__ == "__main__":
    sys.exit(main())
