from pathlib import Path

import numpy as np
import pytest

from golf.data.audit import audit, stream_documents
from golf.data.shards import Dataset, write_shard

BOS = 1


def write_stream(folder: Path, kind: str, documents: list[list[int]], cuts: list[int]) -> None:
    """Write documents end to end, cut into shards at the token positions `cuts`."""
    stream = np.array([token for document in documents for token in [BOS, *document]])
    for number, part in enumerate(np.split(stream, cuts)):
        write_shard(folder / f"x_{kind}_{number:06d}.bin", part)


def unlike(number: int) -> list[int]:
    return [10 + number % 7, 100 + number, 5]


@pytest.mark.parametrize("overlap", [0, 1, 10, 400])
def test_a_planted_overlap_is_counted_exactly(tmp_path: Path, overlap: int) -> None:
    write_stream(tmp_path, "val", [unlike(n) for n in range(500)], [])
    write_stream(tmp_path, "train", [unlike(n) for n in range(500 - overlap, 1300)], [])
    result = audit(Dataset.open(tmp_path))
    assert (result["leaked_documents"], result["leaked_fraction"]) == (overlap, overlap / 500)
    assert result["first_leaked"] == list(range(500))[500 - overlap :][:10]
    assert (result["val_documents"], result["train_documents"]) == (500, 800 + overlap)


def test_every_copy_in_validation_counts_and_copies_in_training_count_once(tmp_path: Path) -> None:
    write_stream(tmp_path, "val", [[7, 8], [9], [7, 8]], [])
    write_stream(tmp_path, "train", [[7, 8], [7, 8], [5]], [])
    assert audit(Dataset.open(tmp_path))["first_leaked"] == [0, 2]


def test_part_of_a_document_is_no_leak(tmp_path: Path) -> None:
    write_stream(tmp_path, "val", [[7, 8, 9]], [])
    write_stream(tmp_path, "train", [[7, 8], [8, 9], [7, 8, 9, 10]], [])
    assert audit(Dataset.open(tmp_path))["leaked_documents"] == 0


def test_empty_documents_are_no_leak(tmp_path: Path) -> None:
    write_stream(tmp_path, "val", [[], [7]], [])
    write_stream(tmp_path, "train", [[], [8]], [])
    assert audit(Dataset.open(tmp_path))["leaked_documents"] == 0


def test_documents_are_the_same_wherever_the_stream_is_cut(tmp_path: Path) -> None:
    documents = [[5], [], [6, 7, 8, 9, 10, 11], [12, 13], [14]]
    for cuts in ([], [1], [2], [3], [4, 6], [5, 6, 7], [10], [10, 11], [0, 14]):
        write_stream(tmp_path, "train", documents, cuts)
        paths = [tmp_path / f"x_train_{number:06d}.bin" for number in range(len(cuts) + 1)]
        assert [document.tolist() for document in stream_documents(paths, BOS)] == documents


def test_tokens_before_the_first_start_belong_to_no_document(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.bin", np.array([8, 9, BOS, 5]))
    assert [document.tolist() for document in stream_documents([tmp_path / "a.bin"], BOS)] == [[5]]
