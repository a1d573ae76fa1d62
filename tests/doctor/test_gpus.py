"""GPUs: what is said of recorded ones, since tests run where there are none."""

from dataclasses import replace

import pytest
import torch

from golf.doctor import gpus as under_test
from golf.doctor.cuda import Cuda, Gpu
from golf.doctor.gpus import check_count, check_cuda, check_gpu, check_health, check_links, examine_gpus
from golf.doctor.nvidia import Reading, parse_query
from tests.doctor.test_nvidia import BROKEN, CONSUMER, IDLE, TROUBLED

H200 = Gpu(0, "NVIDIA H200", (9, 0), "9b1d5c6e-0f0a-7d4e-2b6f-3a5c1e8d7f42", 150_109_880_320)
CUDA = Cuda(build=(13, 0), driver=(13, 0), warning="", gpus=(H200,))
NONE = replace(CUDA, gpus=())


def reading(line: str = IDLE) -> Reading:
    (found,) = parse_query(line)
    return found


def some(count: int, name: str = "NVIDIA H200") -> list[Gpu]:
    return [replace(H200, index=index, name=name, uuid=f"{index}") for index in range(count)]


@pytest.mark.parametrize(
    ("cuda", "physical", "verdict"),
    [
        (CUDA, 1, "ok"),
        (CUDA, 0, "ok"),  # no nvidia-smi
        (replace(CUDA, driver=(12, 8)), 1, "fail"),
        (replace(CUDA, build=(12, 8), driver=(12, 4)), 1, "ok"),  # one major version
        (replace(CUDA, build=(12, 8)), 1, "ok"),
        (replace(NONE, driver=None), 2, "fail"),
        (replace(NONE, driver=None), 0, "ok"),
        (NONE, 2, "fail"),
        (NONE, 0, "ok"),
        (replace(NONE, warning="CUDA unknown error"), 0, "fail"),
        (replace(NONE, build=None, driver=None), 0, "ok"),
        (replace(NONE, build=None), 2, "fail"),
    ],
)
def test_torch_must_fit_the_driver_and_see_the_gpus_there_are(cuda: Cuda, physical: int, verdict: str) -> None:
    assert check_cuda(cuda, physical).verdict == verdict


def test_a_driver_that_is_too_old_is_told_with_both_versions_and_both_ways_out() -> None:
    check = check_cuda(replace(NONE, driver=(12, 4), warning="too old"), 1)
    assert check.value == "torch is built for CUDA 13.0, the driver knows 12.4"
    assert check.remedy == "choose a host of CUDA 13, or install torch for CUDA 12"


def test_what_torch_said_is_told_where_it_sees_no_gpu() -> None:
    assert (
        "torch sees none of 2 GPUs (unknown error 999)"
        in check_cuda(replace(NONE, warning="unknown error 999"), 2).value
    )


@pytest.mark.parametrize(
    ("count", "verdict", "gpus"),
    [(1, "ok", ""), (2, "ok", ""), (4, "ok", ""), (8, "ok", ""), (3, "warn", "2"), (7, "warn", "4"), (16, "warn", "8")],
)
def test_the_number_of_gpus_is_one_that_can_share_the_virtual_ranks(count: int, verdict: str, gpus: str) -> None:
    check = check_count(some(count), count)
    assert (check.verdict, check.value) == (verdict, f"{count} × NVIDIA H200")
    assert f"--gpus {gpus}" in check.remedy or verdict == "ok"


def test_without_a_gpu_there_are_the_demo_and_small_runs() -> None:
    check = check_count([], 0)
    assert (check.verdict, check.value) == ("warn", "no GPU: the demo and small runs only")


def test_gpus_that_differ_are_a_warning() -> None:
    check = check_count([*some(1), *some(1, "NVIDIA L4")], 2)
    assert (check.verdict, check.value) == ("warn", "2 × NVIDIA H200 and NVIDIA L4")


def test_gpus_that_are_hidden_are_counted() -> None:
    assert check_count(some(4), 8).value == "4 × NVIDIA H200, of 8 in the machine"


@pytest.mark.parametrize(
    ("capability", "share", "verdict"),
    [
        ((9, 0), 0.99, "ok"),
        ((9, 0), 0.94, "warn"),
        ((8, 0), 0.99, "warn"),
        ((12, 0), 0.99, "ok"),
        ((7, 5), 0.99, "fail"),
    ],
)
def test_a_gpu_must_know_bfloat16_be_a_hopper_and_be_free(
    capability: tuple[int, int], share: float, verdict: str
) -> None:
    check = check_gpu(replace(H200, capability=capability), int(share * 2**37), 2**37)
    assert check.verdict == verdict
    assert (
        f"compute capability {capability[0]}.{capability[1]}, {share * 128:,.1f} GiB of 128.0 GiB free" in check.value
    )


def test_a_gpu_that_others_use_is_told_so_and_not_that_it_is_old() -> None:
    assert "other processes" in check_gpu(replace(H200, capability=(8, 6)), 2**33, 2**34).remedy


def test_a_sound_gpu_is_told_with_its_state() -> None:
    check = check_health(0, reading())
    assert (check.name, check.verdict) == ("gpu 0 health", "ok")
    assert check.value == ("driver 580.159.03, 29 °C, SM clock 345 of 1980 MHz, power limit 700 of 700 W, ECC errors 0")


def test_what_a_gpu_does_not_tell_is_left_out() -> None:
    assert "no ECC" in check_health(0, reading(CONSUMER)).value
    assert "SM clock" not in check_health(1, reading(BROKEN)).value


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({"uncorrected_errors": 1}, "fail"),
        ({"complaints": ("[GPU requires reset]",)}, "fail"),
        ({"slowdowns": ("heat (driver)",)}, "warn"),
        ({"power_watts": 699.0}, "warn"),
        ({"power_watts": 700.0, "default_power_watts": None}, "ok"),
        ({"celsius": 80.0}, "warn"),
        ({"celsius": 79.0}, "ok"),
        ({"celsius": None}, "ok"),
        ({"uncorrected_errors": None}, "ok"),
    ],
)
def test_errors_fail_and_what_makes_slow_warns(changes: dict[str, object], verdict: str) -> None:
    assert check_health(0, replace(reading(), **changes)).verdict == verdict  # type: ignore[arg-type]  # of each its own


def test_a_gpu_with_every_trouble_is_judged_by_the_worst() -> None:
    check = check_health(3, reading(TROUBLED))
    assert (check.verdict, check.remedy) == ("fail", "replace this GPU, or the pod")
    assert "slowed by a hardware slowdown, heat (driver), heat (hardware)" in check.value


def test_a_gpu_that_nvidia_smi_does_not_know_is_a_warning() -> None:
    assert check_health(0, None).verdict == "warn"


PAIRS = [(0, 1), (0, 2), (1, 2)]


@pytest.mark.parametrize(
    ("access", "links", "verdict"),
    [
        (PAIRS, dict.fromkeys(PAIRS, "NV18"), "ok"),
        (PAIRS, {}, "ok"),
        (PAIRS[:2], dict.fromkeys(PAIRS, "NV18"), "warn"),
        (PAIRS, {(0, 1): "NV18", (0, 2): "SYS", (1, 2): "NV18"}, "warn"),
    ],
)
def test_every_pair_needs_access_and_nvlink_as_far_as_is_known(
    access: list[tuple[int, int]], links: dict[tuple[int, int], str], verdict: str
) -> None:
    check = check_links(PAIRS, access, links)
    assert check.verdict == verdict
    assert check.value.startswith(f"{len(access)} of 3 pairs with peer access, over ")


def test_a_gpu_is_known_by_its_uuid_whatever_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = replace(H200, uuid="b"), replace(H200, index=1, uuid="a")
    known = [replace(reading(), uuid="GPU-a"), replace(reading(), index=1, uuid="GPU-b", celsius=91.0)]
    hidden = replace(reading(), index=2, uuid="GPU-c")
    monkeypatch.setattr(under_test, "pairs_with_access", lambda pairs: pairs)
    monkeypatch.setattr(under_test, "read_links", lambda: {(0, 1): "NV18", (1, 0): "NV18", (0, 2): "SYS"})
    checks = {check.name: check for check in examine_gpus(replace(CUDA, gpus=(first, second)), [*known, hidden])}
    assert [checks[f"gpu {index} health"].verdict for index in (0, 1)] == ["warn", "ok"]
    assert checks["gpus"].value == "2 × NVIDIA H200, of 3 in the machine"
    assert checks["gpu links"].value == "1 of 1 pairs with peer access, over NV18"


def test_links_are_named_by_torch_s_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """nvidia-smi's 0, 1 and 2 are torch's 2, 0 and 1: its link 1-2 is torch's 0-1."""
    order = [replace(H200, index=index, uuid=uuid) for index, uuid in enumerate("bca")]
    known = [replace(reading(), index=index, uuid=f"GPU-{uuid}") for index, uuid in enumerate("abc")]
    seen = {}

    def watched(pairs: object, access: object, links: dict[tuple[int, int], str]) -> list[object]:
        seen.update(links)
        return []

    monkeypatch.setattr(under_test, "pairs_with_access", lambda pairs: pairs)
    monkeypatch.setattr(under_test, "read_links", lambda: {(0, 1): "SYS", (1, 2): "NV18"})
    monkeypatch.setattr(under_test, "check_links", watched)
    examine_gpus(replace(CUDA, gpus=tuple(order)), known)
    assert seen == {(2, 0): "SYS", (0, 1): "NV18"}


def test_the_memory_is_what_nvidia_smi_read_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(under_test, "free_bytes", lambda gpu: pytest.fail("asked, which takes memory itself"))
    checks = {check.name: check for check in examine_gpus(CUDA, [reading()])}
    assert "139.8 GiB of 140.4 GiB free" in checks["gpu 0"].value


def test_without_nvidia_smi_the_driver_is_asked_for_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: (2**36, 2**37))
    checks = {check.name: check for check in examine_gpus(CUDA, None)}
    assert checks["gpu 0"].value.endswith("64.0 GiB of 139.8 GiB free")
    assert (checks["gpu 0"].verdict, checks["gpu 0 health"].verdict) == ("warn", "warn")
    assert "gpu links" not in checks


def test_a_gpu_that_cannot_be_asked_fails_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        torch.cuda, "mem_get_info", lambda index: (H200.total_bytes, H200.total_bytes) if index else 1 / 0
    )
    two = replace(CUDA, gpus=tuple(some(2)))
    monkeypatch.setattr(under_test, "pairs_with_access", lambda pairs: pairs)
    checks = {check.name: check for check in examine_gpus(two, [])}
    assert [checks[f"gpu {index}"].verdict for index in (0, 1)] == ["fail", "ok"]
    assert "ZeroDivisionError" in checks["gpu 0"].value
