"""What a tensor must be for the tensor memory accelerator."""

import torch

from golf.kernels.tma import describable


def test_what_begins_at_whole_16_bytes_is_read_where_it_lies() -> None:
    x = torch.arange(40, dtype=torch.float32)
    assert describable(x) is x
    assert describable(x[4:]).data_ptr() == x[4:].data_ptr()


def test_other_tensors_are_copied() -> None:
    x = torch.arange(40, dtype=torch.float32)[1:]
    found = describable(x)
    assert torch.equal(found, x)
    assert found.data_ptr() % 16 == 0
