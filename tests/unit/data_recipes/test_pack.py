"""Claims about shards and the plans that cut them into windows."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from m1.data_recipes.interleave import apportion, interleave
from m1.data_recipes.pack import (
    Example,
    ExamplePlan,
    MixedPlan,
    TokenBatch,
    TokenShards,
    WindowPlan,
    example_of,
)
from m1.data_recipes.shards import read_shard, write_shard
from m1.infra.errors import BadInputError, CorruptObjectError, InvalidSettingError

END, PAD = 2, 7
VOCABULARY = 60_000


def _shards(directory: Path, lengths: dict[str, list[int]]) -> TokenShards:
    """Every document is START+number*100, +1, +2 ... END: its owner can be read off a token."""
    directory.mkdir(parents=True, exist_ok=True)
    first = 100
    for kind, sizes in lengths.items():
        documents = []
        for size in sizes:
            documents.append([*range(first, first + size - 1), END])
            first += 100
        write_shard(directory / f"{kind}.train", documents, vocabulary_size=VOCABULARY)
    return TokenShards.open(directory, "train")


def _same(left: TokenBatch, right: TokenBatch) -> bool:
    return (
        torch.equal(left.tokens_BT, right.tokens_BT)
        and torch.equal(left.document_ids_BT, right.document_ids_BT)
        and torch.equal(left.loss_mask_BT, right.loss_mask_BT)
    )


@pytest.mark.filterwarnings("ignore")  # what megatron-core says while it is imported
def test_shard_is_byte_identical_to_megatrons(tmp_path: Path) -> None:
    from megatron.core.datasets.indexed_dataset import IndexedDataset, IndexedDatasetBuilder

    import m1.model.compat.cpu  # noqa: F401  megatron-core without CUDA

    documents = [[5, 6, 7, END], [9, END], [1, 2, 3, 4, 5, END]]
    for vocabulary, dtype in ((2048, np.uint16), (200_064, np.int32)):
        ours = tmp_path / f"ours-{vocabulary}"
        theirs = tmp_path / f"theirs-{vocabulary}"
        write_shard(ours, documents, vocabulary_size=vocabulary)
        builder = IndexedDatasetBuilder(f"{theirs}.bin", dtype=dtype)
        for document in documents:
            builder.add_document(torch.tensor(document), [len(document)])
        builder.finalize(f"{theirs}.idx")

        for suffix in ("bin", "idx"):
            assert Path(f"{ours}.{suffix}").read_bytes() == Path(f"{theirs}.{suffix}").read_bytes()
        dataset = IndexedDataset(str(ours))
        assert [dataset[i].tolist() for i in range(len(dataset))] == documents
        shard = read_shard(theirs)
        assert [shard.document(i).tolist() for i in range(3)] == documents


@pytest.mark.parametrize("place", [0, 9, 17, 18, 34, 45, 46, 50])
def test_damaged_index_is_refused_or_stays_in_bounds(tmp_path: Path, place: int) -> None:
    write_shard(tmp_path / "a", [[5, END], [6, 7, END]], vocabulary_size=2048)
    index = tmp_path / "a.idx"
    body = bytearray(index.read_bytes())
    body[place] ^= 0x7F
    index.write_bytes(body)

    with pytest.raises(CorruptObjectError):
        read_shard(tmp_path / "a")


def test_truncated_tokens_are_refused(tmp_path: Path) -> None:
    write_shard(tmp_path / "a", [[5, END], [6, 7, END]], vocabulary_size=2048)
    (tmp_path / "a.bin").write_bytes((tmp_path / "a.bin").read_bytes()[:-2])

    with pytest.raises(CorruptObjectError, match=r"a\.idx"):
        read_shard(tmp_path / "a")


def test_ids_outside_the_vocabulary_are_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="document 0"):
        write_shard(tmp_path / "a", [[2048]], vocabulary_size=2048)


def test_missing_split_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="heldout"):
        TokenShards.open(tmp_path, "heldout")


@settings(deadline=None, max_examples=40)
@given(
    sizes=st.lists(st.integers(1, 90), min_size=1, max_size=12),
    window=st.integers(1, 40),
    world=st.sampled_from([1, 2, 4]),
    seed=st.integers(0, 2**40),
)
def test_packed_windows_keep_every_promise(
    tmp_path_factory: pytest.TempPathFactory,
    sizes: list[int],
    window: int,
    world: int,
    seed: int,
) -> None:
    shards = _shards(tmp_path_factory.mktemp("s"), {"code": sizes, "book": sizes[::-1]})

    def plan() -> WindowPlan:
        return WindowPlan(
            shards,
            weights={"code": 3, "book": 1},
            window_tokens=window,
            windows_per_step=4,
            steps=5,
            seed=seed,
        )

    whole = [plan().batch(step) for step in range(5)]
    resumed = plan().batch(3)

    assert _same(resumed, whole[3])  # pure in step
    slices = [plan().batch(2, rank=rank, world=world).tokens_BT for rank in range(world)]
    assert torch.equal(torch.cat(slices), whole[2].tokens_BT)  # ranks partition the rows
    for batch in whole:
        assert batch.tokens_BT.shape == batch.document_ids_BT.shape == (4, window + 1)
        for tokens, ids, mask in zip(
            batch.tokens_BT, batch.document_ids_BT, batch.loss_mask_BT, strict=True
        ):
            _check_row(tokens.tolist(), ids.tolist(), mask.tolist())


def _check_row(tokens: list[int], ids: list[int], mask: list[float]) -> None:
    """A new document begins exactly after each end-of-document token."""
    assert ids[0] == 0
    for place, token in enumerate(tokens[:-1]):
        assert ids[place + 1] == ids[place] + (token == END)
        assert mask[place] == float(token != END)
        if token != END and tokens[place + 1] != END:
            assert tokens[place + 1] == token + 1


def test_one_epoch_shows_every_token_once_as_a_target(tmp_path: Path) -> None:
    shards = _shards(tmp_path, {"code": [30, 20, 50]})
    plan = WindowPlan(
        shards, weights={"code": 1}, window_tokens=10, windows_per_step=2, steps=5, seed=1
    )

    inputs = torch.cat([plan.batch(step).tokens_BT[:, :-1].flatten() for step in range(5)])

    expected = np.concatenate([shards.document("code", i) for i in range(3)])
    assert sorted(inputs.tolist()) == sorted(expected.tolist())


def test_long_windows_lie_inside_one_long_document(tmp_path: Path) -> None:
    shards = _shards(tmp_path, {"code": [90, 10, 33, 32], "qa": [5, 6]})
    plan = WindowPlan(
        shards,
        weights={"code": 1, "qa": 5},
        window_tokens=32,
        windows_per_step=3,
        steps=20,
        seed=4,
        min_document_tokens=20,
    )

    assert plan.shares == {"code": 1.0}
    owners = set()
    for step in range(20):
        batch = plan.batch(step)
        assert batch.document_ids_BT.unique().tolist() == [0]
        assert batch.loss_mask_BT.min() == 1
        owners |= {int(row[0]) // 100 for row in batch.tokens_BT}
        for row in batch.tokens_BT.tolist():
            _check_row(row, [0] * 33, [1.0] * 32)
    assert owners == {1, 3}


def test_no_long_document_names_the_longest(tmp_path: Path) -> None:
    shards = _shards(tmp_path, {"code": [20]})

    with pytest.raises(BadInputError, match=r"65 tokens or more.*'code': 20"):
        WindowPlan(
            shards,
            weights={"code": 1},
            window_tokens=64,
            windows_per_step=1,
            steps=1,
            seed=1,
            min_document_tokens=1,
        )


@given(weights=st.lists(st.floats(0.01, 10), min_size=1, max_size=6), count=st.integers(1, 400))
def test_interleaving_is_exact_and_even(weights: list[float], count: int) -> None:
    sources, ordinals = interleave(weights, count)

    assert np.bincount(sources, minlength=len(weights)).tolist() == apportion(weights, count)
    for source in range(len(weights)):
        assert ordinals[sources == source].tolist() == list(range(int((sources == source).sum())))
        seen = np.cumsum(sources == source)
        ideal = np.arange(1, count + 1) * seen[-1] / count
        assert np.abs(seen - ideal).max() <= len(weights)


@settings(deadline=None, max_examples=60)
@given(sizes=st.lists(st.integers(1, 17), min_size=1, max_size=60), seed=st.integers(0, 1000))
def test_examples_stay_whole_and_do_not_cross(sizes: list[int], seed: int) -> None:
    examples = [
        Example(
            token_ids=[100 * (n + 1) + i for i in range(size)],
            loss_mask=[i % 2 for i in range(size)],
        )
        for n, size in enumerate(sizes)
    ]

    def plan() -> ExamplePlan:
        return ExamplePlan(
            examples, window_tokens=16, windows_per_step=2, steps=70, seed=seed, pad_id=PAD
        )

    rows = [plan().row(number) for number in range(plan().windows_per_epoch)]

    found: list[int] = []
    for row in rows:
        for number in np.unique(row.document_ids):
            piece = row.tokens[row.document_ids == number].tolist()
            if piece[0] == PAD:
                assert set(piece) == {PAD}
                continue
            found.append(piece[0] // 100 - 1)
            assert piece == list(examples[found[-1]].token_ids)
        targets = row.tokens[1:]
        expected = (targets % 100 % 2 == 1) & (targets >= 100)
        assert row.loss_mask.tolist() == expected.astype(float).tolist()
    assert sorted(found) == list(range(len(sizes)))
    assert _same(plan().batch(69), plan().batch(69))


def test_an_example_longer_than_the_window_is_refused() -> None:
    example = example_of([1] * 10, [2] * 10)

    with pytest.raises(BadInputError, match="longest of 20 tokens"):
        ExamplePlan([example], window_tokens=18, windows_per_step=1, steps=1, seed=1, pad_id=PAD)


def test_mixed_plan_gives_exact_shares_and_is_pure(tmp_path: Path) -> None:
    shards = _shards(tmp_path, {"code": [90, 80]})
    window = {"window_tokens": 16, "windows_per_step": 10, "steps": 4}
    packed = WindowPlan(shards, weights={"code": 1}, seed=1, **window)
    replay = ExamplePlan([example_of([50], [51, END])], seed=1, pad_id=PAD, **window)

    def mixed() -> MixedPlan:
        return MixedPlan([(packed, 0.7), (replay, 0.3)], windows_per_step=10, steps=4)

    batches = [mixed().batch(step) for step in range(4)]
    replayed = [int((batch.tokens_BT[:, 0] == 50).sum()) for batch in batches]
    assert replayed == [3, 3, 3, 3]
    assert _same(mixed().batch(2), batches[2])
    halves = [mixed().batch(1, rank=rank, world=2).tokens_BT for rank in (0, 1)]
    assert torch.equal(torch.cat(halves), batches[1].tokens_BT)


@pytest.mark.parametrize(("step", "rank", "world"), [(4, 0, 1), (-1, 0, 1), (0, 2, 2), (0, 0, 3)])
def test_impossible_batches_are_refused(tmp_path: Path, step: int, rank: int, world: int) -> None:
    shards = _shards(tmp_path, {"code": [90]})
    plan = WindowPlan(
        shards, weights={"code": 1}, window_tokens=8, windows_per_step=4, steps=4, seed=1
    )

    with pytest.raises(ValueError, match="accepted"):
        plan.batch(step, rank=rank, world=world)


def test_negative_weights_are_refused(tmp_path: Path) -> None:
    shards = _shards(tmp_path, {"code": [90]})

    with pytest.raises(InvalidSettingError, match="mixture"):
        WindowPlan(
            shards, weights={"code": -1}, window_tokens=8, windows_per_step=4, steps=4, seed=1
        )
