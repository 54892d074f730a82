"""Reads an exported folder the way a user would: a fresh process, transformers, nothing else.

    python -m m1.stages.load_export FOLDER TOKENS.json LOGITS.safetensors

A process of its own, so that nothing of ours, least of all the patches that let megatron-core
run on a CPU, has a part in what is measured.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM


@torch.no_grad()
def main(folder: Path, tokens: Path, answer: Path) -> None:
    """Write the fp32 logits [T, V] of the token ids in `tokens`."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = torch.tensor([json.loads(tokens.read_text())])
    save_file({"logits": model(ids).logits[0].float().contiguous()}, answer)


if __name__ == "__main__":
    main(*(Path(word) for word in sys.argv[1:4]))
