"""CUDA as PyTorch tells of it, with stand-ins for its answers: tests run where there is none."""

import ctypes
import warnings
from types import SimpleNamespace

import pytest
import torch

from golf.doctor.cuda import pairs_with_access, read_cuda
from tests.doctor.test_gpus import H200


def test_access_counts_where_it_goes_both_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "can_device_access_peer", lambda one, other: (one, other) != (2, 1))
    assert pairs_with_access([(0, 1), (0, 2), (1, 2)]) == [(0, 1), (0, 2)]


def test_gpus_are_read_from_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = SimpleNamespace(name="NVIDIA H200", major=9, minor=0, uuid=H200.uuid, total_memory=H200.total_bytes)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: facts)
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    cuda = read_cuda()
    assert (cuda.gpus, cuda.build) == ((H200,), (12, 8))


def test_what_torch_warns_of_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    def warning() -> bool:
        warnings.warn("The NVIDIA driver on your system is too old", stacklevel=2)
        return False

    monkeypatch.setattr(torch.cuda, "is_available", warning)
    cuda = read_cuda()
    assert (cuda.warning, cuda.gpus) == ("The NVIDIA driver on your system is too old", ())


def test_the_driver_s_own_version_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def answers(number: int, status: int) -> object:
        def version(pointer: object) -> int:
            pointer._obj.value = number  # type: ignore[attr-defined]  # ctypes keeps what byref points to there
            return status

        return lambda name: SimpleNamespace(cuDriverGetVersion=version)

    monkeypatch.setattr(ctypes, "CDLL", answers(12080, 0))
    assert read_cuda().driver == (12, 8)
    monkeypatch.setattr(ctypes, "CDLL", answers(12080, 1))
    assert read_cuda().driver is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_real_gpu_is_read() -> None:
    cuda = read_cuda()
    assert cuda.build is not None
    assert cuda.driver is not None
    assert len(cuda.gpus) == torch.cuda.device_count()
    assert cuda.gpus[0].total_bytes == torch.cuda.get_device_properties(0).total_memory
