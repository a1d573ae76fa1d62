"""The suite is the same on machines with and without a GPU."""

import os

import pytest
import torch


def test_gpus_are_hidden_unless_they_are_asked_for(pytestconfig: pytest.Config) -> None:
    wanted = bool(pytestconfig.getoption("gpu"))
    assert (os.environ.get("CUDA_VISIBLE_DEVICES") == "") is not wanted
    assert wanted or not torch.cuda.is_available()
