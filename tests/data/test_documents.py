import numpy as np
import pytest
import torch

from golf.data.documents import (
    Batch,
    boundary_bucket,
    boundary_lengths,
    build_cu_seqlens,
    document_ranges,
    segment_rows,
)
from golf.errors import UsageError


@pytest.mark.parametrize(
    ("starts", "total", "max_doc_len", "cu_seqlens", "longest"),
    [
        ([0, 5, 9], 20, 4, [0, 4, 5, 9, 13, 17, 20, 20], 4),
        ([3, 10], 16, 0, [0, 3, 10, 16, 16, 16, 16, 16], 7),
        ([], 10, 4, [0, 4, 8, 10, 10, 10, 10, 10], 4),
        ([0, 2048, 5000], 6000, 2048, [0, 2048, 4096, 5000, 6000, 6000, 6000, 6000], 2048),
    ],
)
def test_boundaries_equal_the_golden_table(
    starts: list[int], total: int, max_doc_len: int, cu_seqlens: list[int], longest: int
) -> None:
    built, actual_longest = build_cu_seqlens(starts, total, max_doc_len=max_doc_len, bucket=8)
    assert built.tolist() == cu_seqlens
    assert actual_longest == longest


def test_boundaries_equal_a_walk_over_the_tokens() -> None:
    generator = np.random.default_rng(0)
    for _ in range(50):
        total, max_doc_len = int(generator.integers(1, 300)), int(generator.integers(1, 40))
        starts = np.flatnonzero(generator.random(total) < 0.05)
        walked, since = [0], 0
        for token in range(1, total):
            since = token if token in starts else since
            if (token - since) % max_doc_len == 0:
                walked.append(token)
        built, _ = build_cu_seqlens(starts, total, max_doc_len=max_doc_len, bucket=1)
        assert built.tolist() == [*walked, total]


@pytest.mark.parametrize("count", [62, 63, 64, 65])
def test_boundaries_are_padded_to_the_bucket(count: int) -> None:
    built, _ = build_cu_seqlens(np.arange(count), 100, max_doc_len=0, bucket=64)
    assert built.dtype == torch.int32
    assert len(built) == (64 if count <= 63 else 128)


def test_every_row_and_every_document_start_begins_a_segment() -> None:
    tokens = torch.tensor([[7, 7, 1, 7, 7], [7, 7, 7, 7, 7], [1, 7, 7, 7, 1]])
    cu_seqlens = segment_rows(tokens, bos_id=1, max_doc_len=4)
    assert cu_seqlens.tolist() == [0, 2, 5, 9, 10, 14, *58 * [15]]


SIZES = (1, 24_576, 65_536, 98_304, 786_432)


def test_long_rows_have_one_length_of_boundaries_as_long_as_documents_are_not_very_short() -> None:
    assert [boundary_bucket(tokens, lengths=1) for tokens in SIZES] == [64, 64, 192, 256, 2048]
    for length in (400, 700, 98_304):
        assert len(segment_rows(documents(98_304, length), bos_id=1, max_doc_len=2048, lengths=1)) == 256


def test_they_have_few_lengths_where_a_length_costs_little() -> None:
    assert [boundary_bucket(tokens) for tokens in SIZES] == [64, 64, 64, 64, 512]
    assert list(boundary_lengths(98_304)) == [64, 128, 192, 256]
    found = {len(segment_rows(documents(98_304, length), bos_id=1, max_doc_len=2048)) for length in range(400, 2048)}
    assert found == {64, 128, 192, 256}


def documents(tokens: int, length: int) -> torch.Tensor:
    return (torch.arange(tokens) % length == 0).long()[None]


def test_segmenting_leaves_the_tokens_alone() -> None:
    tokens = torch.tensor([[7, 1, 7]])
    segment_rows(tokens, bos_id=1, max_doc_len=0)
    assert tokens.tolist() == [[7, 1, 7]]


def test_a_document_range_ends_with_the_next_documents_start() -> None:
    tokens = np.array([9, 9, 1, 5, 6, 1, 1, 7], dtype=np.uint16)
    assert document_ranges(tokens, 1).tolist() == [[2, 6], [5, 7], [6, 8]]


def test_a_stream_without_document_start_is_refused() -> None:
    with pytest.raises(UsageError, match=r"no document start \(id 1\)"):
        document_ranges(np.array([5, 6], dtype=np.uint16), 1)


def test_a_batch_moves_as_a_whole() -> None:
    batch = Batch(torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(4), 3).to("meta")
    assert {batch.tokens.device.type, batch.targets.device.type, batch.cu_seqlens.device.type} == {"meta"}
    assert batch.max_seqlen == 3


def test_a_batch_is_copied_where_it_is_if_a_copy_is_wanted() -> None:
    tokens = torch.tensor([[7, 1, 7]])
    batch = Batch(tokens, tokens, torch.tensor([0, 3]), 3)
    assert batch.to("cpu").tokens is tokens
    copied = batch.to("cpu", copy=True)
    assert torch.equal(copied.tokens, tokens)
    assert copied.tokens.data_ptr() != tokens.data_ptr()
