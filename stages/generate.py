"""Try a committed stage: a JSON request on standard input, a JSON answer on standard output.

    echo '{"store": ..., "run": ..., "stage": ..., "prompt": ...}' | python -m m1.stages.generate

Answer: prompt_token_ids, token_ids, logprobs, text, finish_reason (DESIGN.md section 6).
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

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


def answer(request: dict[str, Any], scratch: Path) -> dict[str, Any]:
    """Generate one completion from the committed weights of a stage."""
    store = open_store(request["store"])
    weights = fetch_outputs(
        store, request["run"], request["stage"], (WEIGHTS, MODEL_RECORD), scratch / "weights"
    )
    corpus = fetch_outputs(store, request["run"], "curate", ("tokenizer/",), scratch / "corpus")
    tokenizer = Tokenizer.load(corpus / "tokenizer" / "tokenizer.model")
    record: Any = parse_json((weights / MODEL_RECORD).read_bytes())
    config = ModelConfig.model_validate(record["model"])
    base, layout = float(record["rotary_base"]), ParallelLayout()
    prompt = prompt_token_ids(tokenizer, [Message(role="user", content=request["prompt"])])
    with process_groups(layout, seed=0):
        model = build_model(config, layout, BuildOptions(rotary_base=base))
        load_weights(model, weights / WEIGHTS)
        model.eval()
        sampling = Sampling(
            temperature=float(request.get("temperature", 0.0)),
            stop_token_ids=(tokenizer.end_of_sentence_id,),
        )
        [done] = Decoder(model, config, rotary_base=base).generate(
            [
                Request(
                    prompt_token_ids=prompt,
                    max_new_tokens=int(request.get("max_new_tokens", 256)),
                    seed=int(request.get("seed", 0)),
                )
            ],
            sampling,
        )
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
