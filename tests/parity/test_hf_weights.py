"""The exported folder loads in plain transformers and computes the same logits."""

import json
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from m1.infra.errors import BadInputError
from m1.model.config import ModelConfig
from m1.model.decode_network import weight_shapes
from m1.model.hf_layout import disk_parts
from m1.model.hf_weights import (
    CONFIG_FILE,
    INDEX_FILE,
    export_hugging_face,
    import_hugging_face,
)
from m1.model.reference import reference_logits

SHAPE = ModelConfig(
    num_layers=8, softmax_every=4, hidden_size=32, num_heads=4, head_width=8,
    num_key_value_heads=2, num_experts=4, experts_per_token=2, expert_hidden_size=24,
    vocabulary_size=97, rotary_width=4, rotary_base=1000.0,
)  # fmt: skip
OPTIONS = {"dtype": torch.float32, "rotary_base": 1000.0, "window_tokens": 512}


def random_weights(config: ModelConfig) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for name, shape in weight_shapes(config).items():
        values = torch.randn(shape, generator=generator) * 0.15
        weights[name] = values + 1.0 if len(shape) == 1 else values
    return weights


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    export_hugging_face(
        random_weights(SHAPE), SHAPE, tmp_path / "hf", max_shard_bytes=60_000, **OPTIONS
    )
    return tmp_path / "hf"


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"rotary_width": 8},
        {"rotary_width": 6},
        {"head_width": 20, "rotary_width": 6},
        {"num_key_value_heads": 4, "num_heads": 8},
        {"residual_alpha": 1.7, "norm_epsilon": 1e-3},
        {"num_layers": 5, "softmax_every": 3},
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_transformers_computes_the_logits_of_the_reference(changed: dict, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    config = ModelConfig(**(SHAPE.model_dump() | changed))
    weights = random_weights(config)
    tokens = torch.randint(0, 97, (2, 300), generator=torch.Generator().manual_seed(1))

    export_hugging_face(weights, config, tmp_path / "hf", **(OPTIONS | {"rotary_base": 5000.0}))
    model, report = AutoModelForCausalLM.from_pretrained(
        tmp_path / "hf", output_loading_info=True, dtype=torch.float32
    )
    with torch.no_grad():
        found = model(tokens).logits

    exact = {name: weight.double() for name, weight in weights.items()}
    expected = reference_logits(exact, config, tokens, rotary_base=5000.0)
    assert type(model).__name__ == "MiniMaxForCausalLM"
    assert not report["unexpected_keys"]
    assert not [key for key in report["missing_keys"] if "decay" not in key and "slope" not in key]
    assert not report["mismatched_keys"]
    assert (found.double() - expected).abs().max() < 1e-4


def test_transformers_greedy_generation_equals_our_decoder(folder: Path) -> None:
    from transformers import AutoModelForCausalLM

    from m1.model.decode import Decoder, Request
    from m1.model.sampling import Sampling

    prompt = [3, 1, 4, 1, 5, 9, 2, 6]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    theirs = model.generate(torch.tensor([prompt]), max_new_tokens=24, do_sample=False,
                            temperature=None, top_p=None, pad_token_id=0)  # fmt: skip

    [ours] = Decoder(random_weights(SHAPE), SHAPE).generate(
        [Request(prompt_token_ids=prompt, max_new_tokens=24)], Sampling(temperature=0)
    )

    assert list(ours.token_ids) == theirs[0, len(prompt) :].tolist()


def test_import_is_the_bitwise_inverse_of_export(folder: Path) -> None:
    imported = import_hugging_face(folder, SHAPE)

    for name, weight in random_weights(SHAPE).items():
        assert torch.equal(imported[name], weight), name
    assert len(list(folder.glob("*.safetensors"))) > 3


def test_bf16_export_keeps_routers_in_fp32(tmp_path: Path) -> None:
    options = OPTIONS | {"dtype": torch.bfloat16}

    export_hugging_face(random_weights(SHAPE), SHAPE, tmp_path / "hf", **options)

    [shard] = (tmp_path / "hf").glob("*.safetensors")
    types = {name: tensor.dtype for name, tensor in load_file(shard).items()}
    assert {t for name, t in types.items() if name.endswith("moe.gate.weight")} == {torch.float32}
    assert {t for name, t in types.items() if "moe.gate" not in name} == {torch.bfloat16}


def test_released_folder_with_its_own_row_order_is_read(folder: Path) -> None:
    weights = random_weights(SHAPE)
    for shard in folder.glob("*.safetensors"):
        shard.unlink()
    parts = disk_parts(SHAPE, is_reordered=False)
    tensors = {name: weights[part.weight][part.index].clone() for name, part in parts.items()}
    save_file(tensors, folder / "model.safetensors")
    (folder / INDEX_FILE).unlink()
    described = json.loads((folder / CONFIG_FILE).read_text())
    del described["rope_parameters"]
    (folder / CONFIG_FILE).write_text(json.dumps(described | {"rotary_dim": 4}))

    imported = import_hugging_face(folder, SHAPE)

    assert all(torch.equal(imported[name], weight) for name, weight in weights.items())


def test_released_names_are_counted_as_in_the_released_index() -> None:
    # 8,243 tensors in the released index (facts 1.7); expert sizes shrunk, names unchanged
    small = ModelConfig(
        hidden_size=8, head_width=4, expert_hidden_size=4, vocabulary_size=64, rotary_width=2
    )

    assert len(disk_parts(small, is_reordered=True)) == 8243


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("output_layer.weight", None, "missing.*output_layer.weight"),
        ("output_layer.weight", torch.zeros(3, 3), r"output_layer.weight has shape \(3, 3\)"),
        ("output_layer.weight", torch.full((97, 32), torch.nan), "output_layer.weight.*not finite"),
        ("stray.weight", torch.zeros(1), "unknown.*stray.weight"),
    ],
)
def test_export_refuses_bad_weights_before_writing(
    name: str, change: torch.Tensor | None, message: str, tmp_path: Path
) -> None:
    weights = random_weights(SHAPE)
    if change is None:
        del weights[name]
    else:
        weights[name] = change

    with pytest.raises(BadInputError, match=message):
        export_hugging_face(weights, SHAPE, tmp_path / "hf", **OPTIONS)

    assert not (tmp_path / "hf").exists()


@pytest.mark.parametrize("changed", [{"num_heads": 6}, {"lightning_norm_epsilon": 1e-5}], ids=str)
def test_export_refuses_what_transformers_cannot_express(changed: dict, tmp_path: Path) -> None:
    config = ModelConfig(**(SHAPE.model_dump() | changed))

    with pytest.raises(BadInputError, match=next(iter(changed))):
        export_hugging_face(random_weights(config), config, tmp_path / "hf", **OPTIONS)


def test_export_refuses_a_folder_in_use(folder: Path) -> None:
    with pytest.raises(BadInputError, match="not empty"):
        export_hugging_face(random_weights(SHAPE), SHAPE, folder, **OPTIONS)


def _drop_shard(folder: Path) -> None:
    sorted(folder.glob("*.safetensors"))[1].unlink()


def _truncate_shard(folder: Path) -> None:
    shard = sorted(folder.glob("*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:-8])


def _huge_header(folder: Path) -> None:
    shard = sorted(folder.glob("*.safetensors"))[0]
    shard.write_bytes(struct.pack("<Q", 2**62) + b"{}" * 100)


def _overlapping_header(folder: Path) -> None:
    entry = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    header = json.dumps({"a": entry, "b": entry}).encode()
    shard = sorted(folder.glob("*.safetensors"))[0]
    shard.write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 4)


def _path_outside(folder: Path) -> None:
    index = json.loads((folder / INDEX_FILE).read_text())
    index["weight_map"]["lm_head.weight"] = "../outside.safetensors"
    (folder / INDEX_FILE).write_text(json.dumps(index))


def _unknown_tensor(folder: Path) -> None:
    index = json.loads((folder / INDEX_FILE).read_text())
    index["weight_map"]["surprise"] = "model.safetensors"
    (folder / INDEX_FILE).write_text(json.dumps(index))


def _rewrite_head(folder: Path, head: torch.Tensor) -> None:
    places = json.loads((folder / INDEX_FILE).read_text())["weight_map"]
    shard = folder / places["lm_head.weight"]
    save_file(load_file(shard) | {"lm_head.weight": head}, shard)


def _wrong_shape(folder: Path) -> None:
    _rewrite_head(folder, torch.zeros(96, 32))


def _not_finite(folder: Path) -> None:
    _rewrite_head(folder, torch.full((97, 32), torch.inf))


def _integers(folder: Path) -> None:
    _rewrite_head(folder, torch.zeros(97, 32, dtype=torch.int32))


def _other_model(folder: Path) -> None:
    described = json.loads((folder / CONFIG_FILE).read_text()) | {"num_experts_per_tok": 1}
    (folder / CONFIG_FILE).write_text(json.dumps(described))


def _whole_head_rotary(folder: Path) -> None:
    described = json.loads((folder / CONFIG_FILE).read_text())
    described["rope_parameters"] = {"rope_type": "default", "rope_theta": 1e4}
    (folder / CONFIG_FILE).write_text(json.dumps(described))


def _nested_json(folder: Path) -> None:
    (folder / CONFIG_FILE).write_text("[" * 200_000)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_drop_shard, "is missing"),
        (_truncate_shard, "not a safetensors file"),
        (_huge_header, "not a safetensors file"),
        (_overlapping_header, "not a safetensors file"),
        (_path_outside, "plain file names"),
        (_unknown_tensor, "unknown.*surprise"),
        (_wrong_shape, r"lm_head.weight has shape \(96, 32\)"),
        (_not_finite, "lm_head.weight holds values that are not finite"),
        (_integers, "expected a floating type"),
        (_other_model, "num_experts_per_tok = 1"),
        (_whole_head_rotary, "rope_parameters"),
        (_nested_json, "not JSON"),
    ],
)
def test_import_refuses_a_damaged_folder(damage, message: str, folder: Path) -> None:
    damage(folder)

    with pytest.raises(BadInputError, match=message):
        import_hugging_face(folder, SHAPE)
