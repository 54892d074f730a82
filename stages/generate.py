"""Try a committed stage: a JSON request on standard input, a JSON answer on standard output.

    echo '{"store": ..., "run": ..., "stage": ..., "prompt": ...}' | python -m m1.stages.generate

Answer: prompt_token_ids, token_ids, logprobs, text, finish_reason (DESIGN.md section 6).
"""

import json
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from m1.data_recipes.chat import Message, prompt_token_ids
from m1.data_recipes.tokenizer import Tokenizer
from m1.infra.canonical_json import parse_json
from m1.infra.errors import M1Error, UsageError
from m1.infra.manifest import load_commit
from m1.infra.names import attempt_prefix
from m1.infra.store.open_store import open_store
from m1.infra.store.protocol import Store
from m1.infra.transfer import download_entries
from m1.model.config import ModelConfig, ParallelLayout
from m1.model.decode import Decoder, Request, Sampling
from m1.model.process_groups import process_groups
from m1.model.spec import BuildOptions, build_model
from m1.stages.contract import OUTPUTS_PREFIX
from m1.stages.training.checkpoint_format import load_weights
from m1.stages.training.session import MODEL_RECORD, WEIGHTS


def fetch_outputs(store: Store, run: str, stage: str, parts: tuple[str, ...], to: Path) -> Path:
    """Verified copies of some outputs of a committed stage.

    Raises:
        UsageError: the stage is not committed.
    """
    commit = load_commit(store, run, stage)
    if commit is None:
        raise UsageError(f"stage {stage!r} of run {run!r} is not committed")
    wanted = tuple(OUTPUTS_PREFIX + part for part in parts)
    entries = tuple(entry for entry in commit.objects if entry.key.startswith(wanted))
    download_entries(store, attempt_prefix(run, stage, commit.attempt), entries, to)
    return to / OUTPUTS_PREFIX


@dataclass(frozen=True, slots=True, kw_only=True)
class CommittedModel:
    """The weights of a committed stage with what is needed to use them.

    `window_tokens` is the longest window the weights were trained with, in any stage.
    """

    weights: Mapping[str, torch.Tensor]
    config: ModelConfig
    rotary_base: float
    window_tokens: int
    tokenizer: Tokenizer

    def decoder(self) -> Decoder:
        """Completes prompts within the window."""
        return Decoder(
            self.weights,
            self.config,
            rotary_base=self.rotary_base,
            window_tokens=self.window_tokens,
            text_of=self.tokenizer.decode,
        )


def load_committed(store: Store, run: str, stage: str, scratch: Path) -> CommittedModel:
    """Verified weights and tokenizer of a committed stage.

    Raises:
        UsageError: the stage is not committed.
    """
    weights = fetch_outputs(store, run, stage, (WEIGHTS, MODEL_RECORD), scratch / "weights")
    corpus = fetch_outputs(store, run, "curate", ("tokenizer/",), scratch / "corpus")
    record: Any = parse_json((weights / MODEL_RECORD).read_bytes())
    config = ModelConfig.model_validate(record["model"])
    base, layout = float(record["rotary_base"]), ParallelLayout()
    with process_groups(layout, seed=0):
        model = build_model(config, layout, BuildOptions(rotary_base=base))
        load_weights(model, weights / WEIGHTS)
    return CommittedModel(
        weights={name: weight.detach() for name, weight in model.named_parameters()},
        config=config,
        rotary_base=base,
        window_tokens=_trained_window(store, run, stage, scratch / "records"),
        tokenizer=Tokenizer.load(corpus / "tokenizer" / "tokenizer.model"),
    )


def _trained_window(store: Store, run: str, stage: str, scratch: Path) -> int:
    """Longest window of the stage and those before it: reinforcement's is that of an answer."""
    record_file = fetch_outputs(store, run, stage, (MODEL_RECORD,), scratch / stage) / MODEL_RECORD
    record: Any = parse_json(record_file.read_bytes())
    commit = load_commit(store, run, stage)
    assert commit is not None  # fetch_outputs has just read it
    before = [parent for parent in commit.parents if parent != "curate"]
    windows = [_trained_window(store, run, parent, scratch) for parent in before]
    return max([int(record["window_tokens"]), *windows])


def answer(request: dict[str, Any], scratch: Path) -> dict[str, Any]:
    """Generate one completion from the committed weights of a stage."""
    store = open_store(request["store"])
    loaded = load_committed(store, request["run"], request["stage"], scratch)
    tokenizer = loaded.tokenizer
    prompt = prompt_token_ids(tokenizer, [Message(role="user", content=request["prompt"])])
    asked = Request(
        prompt_token_ids=prompt,
        max_new_tokens=int(request.get("max_new_tokens", 256)),
        seed=int(request.get("seed", 0)),
    )
    sampling = Sampling(
        temperature=float(request.get("temperature", 0.0)),
        stop_token_ids=(tokenizer.end_of_sentence_id,),
    )
    [done] = loaded.decoder().generate([asked], sampling)
    return {
        "prompt_token_ids": list(prompt),
        "token_ids": list(done.token_ids),
        "logprobs": list(done.logprobs),
        "text": tokenizer.decode(done.token_ids),
        "finish_reason": done.finish_reason,
    }


def main() -> int:
    """Read the request, write the answer."""
    try:
        with tempfile.TemporaryDirectory() as scratch:
            result = answer(json.load(sys.stdin), Path(scratch))
    except M1Error as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    sys.stdout.write(json.dumps(result) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
