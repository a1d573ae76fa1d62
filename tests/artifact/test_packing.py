"""Codes to bytes and back."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from golf.artifact.packing import (
    nibble_pairs,
    pack_bytes_by_column,
    pack_nibbles,
    pack_trits,
    prefers_nibbles,
    trit_bytes,
    unpack_bytes_by_column,
    unpack_nibbles,
    unpack_trits,
)


def plane(rows: int, cols: int, levels: int, seed: int = 0) -> Tensor:
    values = np.random.default_rng(seed).integers(-levels, levels, (rows, cols), endpoint=True)
    return torch.from_numpy(values.astype(np.int8))


def unpacked(pairs: bytes, escapes: bytes, rows: int, cols: int) -> Tensor:
    taken = []

    def take(count: int) -> bytes:
        taken.append(count)
        return escapes[:count]

    codes = unpack_nibbles(pairs, take, rows, cols)
    assert taken == [len(escapes)]
    return codes


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(2, 8), st.integers(0, 2**32))
def test_nibbles_come_back(rows: int, cols: int, bits: int, seed: int) -> None:
    codes = plane(rows, cols, 2 ** (bits - 1) - 1, seed)
    pairs, escapes = pack_nibbles(codes)
    assert len(pairs) == nibble_pairs(rows * cols)
    assert torch.equal(unpacked(pairs, escapes, rows, cols), codes)


def test_two_near_codes_share_a_byte() -> None:
    assert pack_nibbles(torch.tensor([[7], [-7], [1]], dtype=torch.int8)) == (bytes([0x97, 0x01]), b"")


def test_far_codes_leave_a_mark_and_go_to_the_escapes() -> None:
    assert pack_nibbles(torch.tensor([[-8], [3], [127]], dtype=torch.int8)) == (bytes([0x38, 0x08]), b"\xf8\x7f")


def test_neighbours_in_the_stream_share_a_column() -> None:
    assert pack_bytes_by_column(torch.tensor([[1, 2, 3], [4, 5, 6]], dtype=torch.int8)) == bytes([1, 4, 2, 5, 3, 6])


@pytest.mark.parametrize(("rows", "cols"), [(1, 1), (3, 423), (423, 3)])
def test_plain_bytes_come_back(rows: int, cols: int) -> None:
    codes = plane(rows, cols, 127)
    assert torch.equal(unpack_bytes_by_column(pack_bytes_by_column(codes), rows, cols), codes)


def test_unpacked_codes_are_contiguous_and_writable() -> None:
    codes = unpacked(*pack_nibbles(plane(3, 5, 31)), 3, 5)
    assert codes.is_contiguous()
    codes[0, 0] = 1


def test_nibbles_are_preferred_until_escapes_are_the_majority() -> None:
    assert prefers_nibbles(torch.tensor([[7, -7, 8, -8]], dtype=torch.int8))
    assert not prefers_nibbles(torch.tensor([[7, -9, 8, -8]], dtype=torch.int8))


def test_the_lowest_integers_come_back() -> None:
    codes = torch.tensor([[-128, -32, -8, 127, 0, -128]], dtype=torch.int8)
    assert not prefers_nibbles(codes)
    assert torch.equal(unpacked(*pack_nibbles(codes), 1, 6), codes)


def test_five_ternary_codes_share_a_byte() -> None:
    assert pack_trits(torch.tensor([[1, 0, -1, 1, 1]], dtype=torch.int8)) == bytes([2 + 3 + 0 + 2 * 27 + 2 * 81])


def test_the_last_byte_is_filled_up_with_digits_0() -> None:
    assert pack_trits(torch.tensor([[1], [0]], dtype=torch.int8)) == bytes([2 + 3])


@pytest.mark.parametrize(("rows", "cols"), [(1, 1), (3, 423), (423, 3), (5, 5), (1, 6)])
def test_ternary_codes_come_back(rows: int, cols: int) -> None:
    codes = plane(rows, cols, 1)
    packed = pack_trits(codes)
    assert len(packed) == trit_bytes(rows * cols) == -(-rows * cols // 5)
    assert torch.equal(unpack_trits(packed, rows, cols), codes)


@pytest.mark.parametrize("packed", [bytes([243, 0]), bytes([0, 255]), bytes([0, 3])])  # 3: the seventh code of six
def test_bytes_that_no_ternary_codes_give_are_refused(packed: bytes) -> None:
    with pytest.raises(ValueError, match="no codes are packed to"):
        unpack_trits(packed, 2, 3)
