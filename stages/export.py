"""Stage export: a folder that `transformers` loads, proven by comparing logits.

The last weights of the run are written as safetensors in the released layout, with configuration
and tokenizer; then the folder is loaded again by `transformers` and both models read the same
tokens.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from m1.data_recipes.chat import CHAT_TEMPLATE
from m1.data_recipes.pack import TokenShards
from m1.data_recipes.tokenizer import Tokenizer, write_hugging_face_tokenizer
from m1.infra.canonical_json import parse_json
from m1.infra.errors import StageFailedError
from m1.model.hf_weights import export_hugging_face
from m1.model.rotary import set_rotary_base
from m1.model.spec import BuildOptions, HybridModel, forward_logits
from m1.model.whole_weights import whole_weights
from m1.stages.context import StageContext
from m1.stages.contract import StageOutcome
from m1.stages.model_card import model_card
from m1.stages.settings import ExportSettings, PretrainSettings
from m1.stages.training.evaluation import heldout_batches
from m1.stages.training.session import MODEL_RECORD, open_model

FOLDER = "huggingface"
LARGEST_DIFFERENCE = {"fp32": 1e-3, "bf16": 0.5}  # ours; fp32 measured near 1e-5


def run(context: StageContext, settings: ExportSettings) -> StageOutcome:
    """Write the folder, load it with transformers, compare logits, refuse if they differ."""
    parent = context.weights_parent()
    assert parent is not None
    with open_model(context, BuildOptions(), weights_of=parent) as model:
        record: Any = parse_json(context.fetch(parent, MODEL_RECORD).read_bytes())
        set_rotary_base(model, float(record["rotary_base"]))
        tokenizer = context.fetch("curate", "tokenizer/") / "tokenizer.model"
        shards = context.fetch("curate", "shards/")
        tokens_1T = _parity_tokens(settings, shards)
        ours_TV = _logits(model, tokens_1T)
        weights = {name: weight.detach() for name, weight in whole_weights(model).items()}
        if not context.is_main:  # one rank writes; the others have given it all they hold
            return StageOutcome(metrics={})
        folder = context.outputs / FOLDER
        extras = (tokenizer, int(record["window_tokens"]), model.rotary_base)
        _write(context, settings, weights, folder, extras)
        context.report(phase="comparing")
        theirs_TV = _logits_of_transformers(folder, tokens_1T[0].tolist())
        difference = float((ours_TV - theirs_TV).abs().max())
    if not difference <= LARGEST_DIFFERENCE[settings.precision]:  # NaN is a difference too
        raise StageFailedError(f"logits of the exported folder differ by {difference:.2e}")
    size = sum(path.stat().st_size for path in folder.iterdir())
    return StageOutcome(
        steps=1,
        tokens=settings.parity_tokens,
        metrics={"largest_logit_difference": difference, "folder_bytes": size},
    )


def _write(
    context: StageContext,
    settings: ExportSettings,
    weights: Mapping[str, torch.Tensor],
    folder: Path,
    tokenizer_window_base: tuple[Path, int, float],
) -> None:
    context.report(phase="writing")
    tokenizer, window_tokens, rotary_base = tokenizer_window_base
    export_hugging_face(
        weights,
        context.model,
        folder,
        dtype=torch.bfloat16 if settings.precision == "bf16" else torch.float32,
        rotary_base=rotary_base,
        window_tokens=window_tokens,
        max_shard_bytes=settings.max_shard_bytes,
        stop_token_ids=(Tokenizer.load(tokenizer).end_of_sentence_id,),
    )
    write_hugging_face_tokenizer(tokenizer, folder, chat_template=CHAT_TEMPLATE)
    parent = context.weights_parent()
    assert parent is not None
    card = model_card(
        context.parent_commit(parent),
        context.model,
        rotary_base=rotary_base,
        window_tokens=window_tokens,
    )
    (folder / "README.md").write_text(card, encoding="utf-8")


def _parity_tokens(settings: ExportSettings, shards: Path) -> torch.Tensor:
    """Held-out token ids [1, T] that both models read."""
    batch = heldout_batches(
        TokenShards.open(shards, "heldout"),
        weights=PretrainSettings().mixture,
        window_tokens=settings.parity_tokens,
        tokens=settings.parity_tokens,
    )[0]
    return batch.tokens_BT[:1, :-1]


@torch.no_grad()
def _logits(model: HybridModel, tokens_1T: torch.Tensor) -> torch.Tensor:
    """Logits [T, V] of the Megatron model, in fp32 on the CPU; all ranks take part."""
    model.eval()
    logits_1TV = forward_logits(model, tokens_1T.to(next(model.parameters()).device))
    return logits_1TV[0].float().cpu()


def _logits_of_transformers(folder: Path, token_ids: list[int]) -> torch.Tensor:
    """Load the folder in a fresh process and read the tokens there."""
    with tempfile.TemporaryDirectory() as scratch:
        tokens, answer = Path(scratch) / "tokens.json", Path(scratch) / "logits.safetensors"
        tokens.write_text(json.dumps(token_ids))
        words = [
            sys.executable,
            "-m",
            "m1.stages.load_export",
            str(folder),
            str(tokens),
            str(answer),
        ]
        done = subprocess.run(words, capture_output=True, text=True, check=False)  # noqa: S603
        if done.returncode:
            raise StageFailedError(f"transformers does not load the folder:\n{done.stderr[-2000:]}")
        return load_file(answer)["logits"]
