"""The exported folder loads in plain transformers and computes the same logits."""

import json
import random
import struct
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from m1.infra.errors import BadInputError
from m1.model.config import ModelConfig
from m1.model.decode_network import weight_shapes
from m1.model.hf_config import CONFIG_FILE, describe
from m1.model.hf_files import INDEX_FILE
from m1.model.hf_layout import disk_parts
from m1.model.hf_weights import export_hugging_face, import_hugging_face
from m1.model.reference import reference_logits
from m1.model.slopes import slopes

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


@pytest.fixture(autouse=True)
def _plain_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lifts what another test of this process may have patched for megatron-core on a CPU."""
    for name in ("empty", "zeros", "ones", "full", "tensor", "arange", "rand", "randn",
                 "empty_like"):  # fmt: skip
        factory = getattr(torch, name)
        monkeypatch.setattr(torch, name, getattr(factory, "__wrapped__", factory))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    export_hugging_face(
        random_weights(SHAPE), SHAPE, tmp_path / "hf", max_shard_bytes=60_000, **OPTIONS
    )
    return tmp_path / "hf"


def random_configs(count: int) -> list[ModelConfig]:
    """Layer counts that eight does not divide, and every kind of head and expert count."""
    rng = random.Random(20)
    configs = []
    for _ in range(count):
        heads = rng.choice([2, 4, 8])
        width = rng.choice([32, 64, 96, 128])
        experts = rng.choice([2, 4, 7, 12])
        configs.append(
            ModelConfig(
                num_layers=rng.choice([3, 5, 7, 9, 10, 11]),
                softmax_every=rng.choice([2, 3, 4, 8]),
                hidden_size=rng.choice([32, 48, 80]),
                num_heads=heads,
                head_width=width,
                num_key_value_heads=rng.choice([g for g in (1, 2, 4, 8) if heads % g == 0]),
                num_experts=experts,
                experts_per_token=rng.randint(1, min(3, experts)),
                expert_hidden_size=rng.choice([24, 40]),
                vocabulary_size=97,
                rotary_width=width // rng.choice([1, 2, 4]),
            )
        )
    return configs


CONFIGS = [
    SHAPE,
    ModelConfig(**(SHAPE.model_dump() | {"head_width": 20, "rotary_width": 6})),
    ModelConfig(**(SHAPE.model_dump() | {"residual_alpha": 1.7, "norm_epsilon": 1e-3})),
    *random_configs(8),
]


def even_weights(config: ModelConfig) -> dict[str, torch.Tensor]:
    """Weights that neither grow nor shrink what passes: logits of a standard deviation near 1."""
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for name, shape in weight_shapes(config).items():
        values = torch.randn(shape, generator=generator)
        weights[name] = values * shape[-1] ** -0.5 if len(shape) > 1 else 1.0 + 0.15 * values
    return weights


def rotate_leading(q, k, cos, sin, unsqueeze_dim=1):
    """What M1 does and transformers' class does not: the leading elements only."""
    width = cos.shape[-1]
    cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)

    def turn(x: torch.Tensor) -> torch.Tensor:
        first, passed = x[..., :width], x[..., width:]
        half = torch.cat([-first[..., width // 2 :], first[..., : width // 2]], -1)
        return torch.cat([first * cos + half * sin, passed], -1)

    return turn(q), turn(k)


@pytest.mark.parametrize("layout", ["transformers", "m1"])
@pytest.mark.parametrize("number", range(len(CONFIGS)))
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_transformers_computes_the_logits_of_the_reference(
    number: int, layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder as it is; M1's own layout in the class patched to rotate `rotary_dim` only.

    Where the last layer is a lightning one, transformers' decay (1e-5 stands elsewhere in its
    formula) is patched too: with three layers it changes the last slope by half.
    """
    from transformers import AutoModelForCausalLM
    from transformers.models.minimax import modeling_minimax

    config, base, folder = CONFIGS[number], 5000.0, tmp_path / "hf"
    weights = even_weights(config)
    tokens = torch.randint(0, 97, (2, 280), generator=torch.Generator().manual_seed(1))
    options = OPTIONS | {"rotary_base": base}
    export_hugging_face(weights, config, folder, **options, layout=layout)
    if config.layer_kind(config.num_layers - 1) == "lightning":
        monkeypatch.setattr(
            modeling_minimax.MiniMaxLightningAttention,
            "get_slope_rate",
            lambda self, device=None: slopes(config, self.layer_idx).to(device)[:, None, None],
        )
    if layout == "m1":
        described = describe(config, **options)
        described["rope_parameters"] = {"rope_type": "default", "rope_theta": base}
        (folder / CONFIG_FILE).write_text(json.dumps(described))
        monkeypatch.setattr(modeling_minimax, "apply_rotary_pos_emb", rotate_leading)

    model, report = AutoModelForCausalLM.from_pretrained(
        folder, output_loading_info=True, dtype=torch.float32
    )
    if layout == "m1":
        half = config.rotary_width // 2
        model.model.rotary_emb.inv_freq = base ** (-torch.arange(half) / half)
    with torch.no_grad():
        found = model(tokens).logits

    exact = {name: weight.double() for name, weight in weights.items()}
    expected = reference_logits(exact, config, tokens, rotary_base=base)
    assert type(model).__name__ == "MiniMaxForCausalLM"
    assert not report["unexpected_keys"]
    assert not [key for key in report["missing_keys"] if "decay" not in key and "slope" not in key]
    assert not report["mismatched_keys"]
    assert (found.double() - expected).abs().max() < 1e-5


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


@pytest.mark.parametrize("layout", ["transformers", "m1"])
def test_import_is_the_bitwise_inverse_of_export(layout: str, tmp_path: Path) -> None:
    folder = tmp_path / "hf"
    export_hugging_face(
        random_weights(SHAPE), SHAPE, folder, max_shard_bytes=60_000, layout=layout, **OPTIONS
    )

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


def test_the_released_layout_keeps_rows_and_says_what_config_json_of_m1_says(
    tmp_path: Path,
) -> None:
    weights = random_weights(SHAPE)

    export_hugging_face(weights, SHAPE, tmp_path / "m1", layout="m1", **OPTIONS)

    [shard] = (tmp_path / "m1").glob("*.safetensors")
    stored = load_file(shard)
    for name, part in disk_parts(SHAPE, is_reordered=False).items():
        assert torch.equal(stored[name], weights[part.weight][part.index])
    described = json.loads((tmp_path / "m1" / CONFIG_FILE).read_text())
    assert described["model_type"] == "minimax_m1"
    assert described["attn_type_list"] == [0, 0, 0, 1, 0, 0, 0, 1]
    assert (described["rotary_dim"], described["rope_theta"]) == (4, 1000.0)
    assert described["layernorm_mlp_alpha"] == pytest.approx(SHAPE.alpha)


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
def test_export_refuses_bad_weights_and_leaves_nothing(
    name: str, change: torch.Tensor | None, message: str, tmp_path: Path
) -> None:
    weights = random_weights(SHAPE)
    if change is None:
        del weights[name]
    else:
        weights[name] = change

    with pytest.raises(BadInputError, match=message):
        export_hugging_face(weights, SHAPE, tmp_path / "hf", **OPTIONS)

    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("changed", [{"num_heads": 6}, {"lightning_norm_epsilon": 1e-5}], ids=str)
def test_export_refuses_what_transformers_cannot_express(changed: dict, tmp_path: Path) -> None:
    config = ModelConfig(**(SHAPE.model_dump() | changed))

    with pytest.raises(BadInputError, match=next(iter(changed))):
        export_hugging_face(random_weights(config), config, tmp_path / "hf", **OPTIONS)


def test_an_export_that_fails_on_the_way_leaves_nothing(tmp_path: Path) -> None:
    class Gathered(Mapping):
        """Weights that arrive when they are asked for; the last one does not."""

        def __getitem__(self, name: str) -> torch.Tensor:
            if name == "decoder.layers.7.mlp.experts.down_weight":
                raise ConnectionError("a rank is gone")
            return random_weights(SHAPE)[name]

        def __iter__(self):
            return iter(weight_shapes(SHAPE))

        def __len__(self) -> int:
            return len(weight_shapes(SHAPE))

    with pytest.raises(ConnectionError):
        export_hugging_face(Gathered(), SHAPE, tmp_path / "hf", max_shard_bytes=50_000, **OPTIONS)

    assert not list(tmp_path.iterdir())


# VmHWM and not ru_maxrss: the latter begins with what the parent process had
_MEASURE = """
import re, sys
from pathlib import Path
from m1.model.config import ModelConfig
from m1.model.hf_weights import import_hugging_face, stream_hugging_face

def most_bytes():
    found = re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())
    return 1024 * int(found[1])

folder, config = Path(sys.argv[2]), ModelConfig.model_validate_json(sys.argv[3])
before = most_bytes()
if sys.argv[1] == "stream":
    count = sum(1 for _ in stream_hugging_face(folder, config))
else:
    count = len(import_hugging_face(folder, config))
print(count, most_bytes() - before)
"""


def test_streaming_needs_the_memory_of_a_layer_not_of_the_model(tmp_path: Path) -> None:
    config = SHAPE.model_copy(update={"num_layers": 40, "expert_hidden_size": 4096})
    generator = torch.Generator().manual_seed(0)
    weights = {
        name: torch.randn(shape, generator=generator)
        for name, shape in weight_shapes(config).items()
    }
    layer_bytes = 4 * sum(w.numel() for n, w in weights.items() if ".layers.0." in n)
    export_hugging_face(weights, config, tmp_path / "hf", max_shard_bytes=layer_bytes, **OPTIONS)

    grown = {}
    for way in ("stream", "whole"):
        words = [sys.executable, "-c", _MEASURE, way, tmp_path / "hf", config.model_dump_json()]
        done = subprocess.run(words, capture_output=True, text=True, check=True)
        count, grown[way] = map(int, done.stdout.split())
        assert count == len(weights)

    assert grown["whole"] > 35 * layer_bytes  # the measure sees what it should see
    assert grown["stream"] < 6 * layer_bytes


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


def _offsets_outside(folder: Path) -> None:
    entry = {"dtype": "F32", "shape": [4], "data_offsets": [0, 2**40]}
    header = json.dumps({"a": entry}).encode()
    shard = sorted(folder.glob("*.safetensors"))[0]
    shard.write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 16)


def _header_of_something_else(folder: Path) -> None:
    shard = sorted(folder.glob("*.safetensors"))[0]
    shard.write_bytes(struct.pack("<Q", 8) + b"\x80\x04pickle" + b"\0" * 16)


def _stray_in_shard(folder: Path) -> None:
    shard = sorted(folder.glob("*.safetensors"))[0]
    save_file(load_file(shard) | {"stray": torch.zeros(1)}, shard)


def _other_alpha(folder: Path) -> None:
    described = json.loads((folder / CONFIG_FILE).read_text()) | {"mlp_alpha_factor": 1.0}
    (folder / CONFIG_FILE).write_text(json.dumps(described))


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
        (_offsets_outside, "not a safetensors file"),
        (_header_of_something_else, "not a safetensors file"),
        (_stray_in_shard, "unknown.*stray"),
        (_other_alpha, "mlp_alpha_factor = 1.0"),
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
