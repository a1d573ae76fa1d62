"""Made-up tokens look like web text to the loader: documents of the right lengths, BOS at their starts alone."""

from pathlib import Path

import numpy as np
import pytest
import torch

from golf.bench.synthetic import TRAIN_SHARDS, VAL_BATCHES, draw_batch, draw_lengths, draw_tokens, make_dataset
from golf.data.bytes import byte_counter
from golf.data.shards import read_shard
from golf.distributed import single_world
from golf.session import open_dataset
from golf.train_state import open_loader
from tests.pico import pico_recipe


def test_half_of_the_documents_are_shorter_than_545_tokens_and_the_mean_is_950() -> None:
    lengths = draw_lengths(400_000, np.random.default_rng(0))
    assert np.median(lengths) == pytest.approx(545, rel=0.01)
    assert lengths.mean() == pytest.approx(950, rel=0.01)
    assert lengths.min() >= 1


def test_documents_begin_with_bos_at_the_lengths_that_were_drawn() -> None:
    tokens = draw_tokens(30_423, vocab_size=11, bos_id=4, seed=3)
    generator = np.random.default_rng(3)
    generator.integers(0, 10, 30_423, dtype=np.uint16)
    starts = np.cumsum(draw_lengths(2 + 30_423 // 16, generator))
    expected = [0, *starts[starts < 30_423]]
    assert np.flatnonzero(tokens == 4).tolist() == expected
    assert len(expected) > 10


def test_every_token_but_bos_is_equally_likely() -> None:
    tokens = draw_tokens(200_000, vocab_size=5, bos_id=2, seed=0)
    shares = np.bincount(tokens[tokens != 2], minlength=5) / np.count_nonzero(tokens != 2)
    assert shares.tolist() == pytest.approx([0.25, 0.25, 0, 0.25, 0.25], abs=0.01)


def test_the_same_seed_gives_the_same_tokens() -> None:
    drawn = [draw_tokens(423, vocab_size=61, bos_id=1, seed=seed) for seed in (5, 5, 6)]
    assert np.array_equal(drawn[0], drawn[1])
    assert not np.array_equal(drawn[0], drawn[2])


def test_a_batch_is_one_row_whose_segments_are_documents_cut_at_the_greatest_length() -> None:
    batch = draw_batch(9_423, vocab_size=61, bos_id=1, max_doc_len=512, seed=0)
    lengths = batch.cu_seqlens.diff()
    starts = (batch.tokens[0] == 1).nonzero().flatten()
    assert batch.tokens.shape == batch.targets.shape == (1, 9_423)
    assert torch.equal(batch.targets[0, :-1], batch.tokens[0, 1:])
    assert int(lengths.max()) == 512
    assert int(lengths.sum()) == 9_423
    assert set(starts.tolist()) < set(batch.cu_seqlens.tolist())


@pytest.mark.parametrize("loader", ["packed", "sequential", "shuffled", "coprime"])
def test_a_data_set_serves_a_training_with_any_loader(tmp_path: Path, loader: str) -> None:
    recipe = pico_recipe(f"data.loader={loader}", "model.bos_id=7")
    make_dataset(tmp_path, recipe)
    opened = open_loader(recipe, open_dataset(recipe, tmp_path), single_world(torch.device("cpu")))
    for _ in range(TRAIN_SHARDS + 1):
        (batch,) = opened.next_step()
        assert batch.tokens.numel() == recipe.data.batch_tokens
    opened.close()


def test_a_data_set_has_validation_tokens_of_whole_batches_and_bytes_for_all_but_bos(tmp_path: Path) -> None:
    recipe = pico_recipe("model.bos_id=7")
    dataset = make_dataset(tmp_path, recipe)
    tokens = dataset.val_tokens()
    assert len(tokens) == VAL_BATCHES * recipe.eval.batch_tokens + 1
    counted = byte_counter(dataset, 61).bytes_of(tokens, 0, len(tokens) - 1)
    assert counted.tolist() == [0 if token == 7 else 3 for token in tokens[1:]]


def test_all_shards_are_different_tokens(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path, pico_recipe())
    stretches = [read_shard(path)[:200].tolist() for path in (*dataset.train, *dataset.val)]
    assert len(stretches) == TRAIN_SHARDS + 1
    assert len({tuple(tokens) for tokens in stretches}) == len(stretches)
