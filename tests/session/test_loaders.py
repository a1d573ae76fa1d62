"""A whole run on each loader: it trains, is resumed with the same bits, and differs from the others."""

import pytest
import torch

from golf.data.shards import Dataset
from golf.distributed import World
from golf.errors import UsageError
from golf.train_state import open_loader
from tests.pico import pico_dataset
from tests.session_tools import CPU, Place, digests

SHORT = ("schedule.iterations=8", "optim.momentum_warmup_steps=3", "run.checkpoints=['step_4']")


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A place with a shard for each virtual rank."""
    place = Place.make(tmp_path_factory.mktemp("loaders"))
    for path in place.data.iterdir():
        path.unlink()
    pico_dataset(place.data, train=tuple(range(300, 380, 10)))
    return place


@pytest.mark.parametrize("name", ["sequential", "shuffled", "coprime"])
def test_a_run_on_it_is_resumed_with_the_same_bits(wide: Place, name: str) -> None:
    wide.start(name, f"data.loader={name}", *SHORT)
    expected = digests(wide.run(name))
    wide.resume(f"{name}@step_4", force=True)
    assert digests(wide.run(name)) == expected


def test_each_loader_and_crossing_documents_reads_something_else(wide: Place) -> None:
    dataset, seen = Dataset.open(wide.data), []
    for crosses in (False, True):
        for name in ("packed", "sequential", "shuffled", "coprime"):
            recipe = wide.recipe(f"data.loader={name}", f"model.cross_documents={str(crosses).lower()}")
            loader = open_loader(recipe, dataset, World(0, 1, 0, CPU))
            loader.seek(1)  # the first packed and sequential steps read the same tokens
            batch = loader.next_step()[0]
            loader.close()
            assert batch.tokens.numel() == 256
            assert batch.max_seqlen == 16
            seen.append((batch.tokens.flatten(), batch.cu_seqlens.unique()))
    for number, one in enumerate(seen):
        for other in seen[:number]:
            assert not all(torch.equal(mine, theirs) for mine, theirs in zip(one, other, strict=True))


def test_a_shard_for_each_virtual_rank_is_asked_for(finished: Place) -> None:
    recipe = finished.recipe("data.loader=shuffled")
    with pytest.raises(UsageError, match="needs 8 training shards"):
        open_loader(recipe, Dataset.open(finished.data), World(0, 1, 0, CPU))
