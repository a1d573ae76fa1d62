"""nvidia-smi: recorded answers, and a stand-in program that gives them."""

from pathlib import Path

import pytest

from golf.doctor.nvidia import parse_links, parse_query, read_gpus, read_links
from golf.errors import EnvironmentUnfitError

IDLE = (
    "0, GPU-9b1d5c6e-0f0a-7d4e-2b6f-3a5c1e8d7f42, 580.159.03, 143771, 143166, 29, 345, 1980, 700.00, 700.00, 0, "
    "0x0000000000000001"
)
TROUBLED = (
    "3, GPU-1c2d3e4f-5a6b-7c8d-9e0f-a1b2c3d4e5f6, 550.54.15, 81559, 71234, 86, 1155, 1980, 500.00, 700.00, 2, "
    "0x0000000000000068"
)
CONSUMER = (
    "0, GPU-0a1b2c3d-4e5f-6a7b-8c9d-0e1f2a3b4c5d, 560.35.03, 24564, 23990, 41, 210, 3105, 450.00, 450.00, [N/A], "
    "0x0000000000000101"
)
BROKEN = (
    "1, GPU-2c1d3e4f-5a6b-7c8d-9e0f-a1b2c3d4e5f6, 550.54.15, 81559, [Unknown Error], [N/A], [GPU requires reset], "
    "[Not Supported], 500.00, 700.00, 0, [N/A]"
)
TOPOLOGY = """\
\t\x1b[4mGPU0\tGPU1\tGPU2\tNIC0\tNIC1\tCPU Affinity\tNUMA Affinity\tGPU NUMA ID\x1b[0m
GPU0\t X \tNV18\tPHB\tPIX\tSYS\t0-55,112-167\t0\t\tN/A
GPU1\tNV18\t X \tSYS\tNODE\tSYS\t0-55,112-167\t0\t\tN/A
GPU2\tPHB\tSYS\t X \tSYS\tPIX\t56-111,168-223\t1\t\tN/A
NIC0\tPIX\tNODE\tSYS\t X \tSYS\t\t\t\t
NIC1\tSYS\tSYS\tPIX\tSYS\t X \t\t\t\t

Legend:

  X    = Self
  SYS  = Connection traversing PCIe as well as the SMP interconnect between NUMA nodes (e.g., QPI/UPI)
  NV#  = Connection traversing a bonded set of # NVLinks

NIC Legend:

  NIC0: mlx5_0
  NIC1: mlx5_1
"""


def stand_in(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Put a shell script called nvidia-smi first on the path, alone on it besides the shell's own commands."""
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))


def test_an_idle_gpu_is_read() -> None:
    (reading,) = parse_query(f"{IDLE}\n")
    assert (reading.index, reading.driver) == (0, "580.159.03")
    assert reading.uuid == "GPU-9b1d5c6e-0f0a-7d4e-2b6f-3a5c1e8d7f42"
    assert (reading.total_bytes, reading.free_bytes) == (143771 * 2**20, 143166 * 2**20)
    assert (reading.celsius, reading.clock_mhz, reading.max_clock_mhz) == (29.0, 345.0, 1980.0)
    assert (reading.power_watts, reading.default_power_watts) == (700.0, 700.0)
    assert (reading.uncorrected_errors, reading.slowdowns, reading.complaints) == (0, (), ())


def test_a_troubled_gpu_tells_its_errors_its_limit_and_what_slows_it() -> None:
    (reading,) = parse_query(TROUBLED)
    assert (reading.uncorrected_errors, reading.power_watts) == (2, 500.0)
    assert reading.slowdowns == ("a hardware slowdown", "heat (driver)", "heat (hardware)")


@pytest.mark.parametrize(
    ("mask", "slowdowns"),
    [
        ("0x0000000000000000", ()),
        ("0x0000000000000001", ()),
        ("0x0000000000000100", ()),
        ("0x0000000000000002", ("a clocks setting",)),
        ("0x0000000000000004", ("the power cap",)),
        ("0x0000000000000090", ("sync boost", "the power brake")),
    ],
)
def test_idleness_and_displays_slow_nothing(mask: str, slowdowns: tuple[str, ...]) -> None:
    (reading,) = parse_query(IDLE.replace("0x0000000000000001", mask))
    assert reading.slowdowns == slowdowns


def test_what_a_gpu_lacks_is_no_complaint() -> None:
    (reading,) = parse_query(CONSUMER)
    assert (reading.uncorrected_errors, reading.complaints, reading.slowdowns) == (None, (), ())


def test_what_stands_where_a_number_should_is_a_complaint() -> None:
    (reading,) = parse_query(BROKEN)
    assert reading.complaints == ("[Unknown Error]", "[GPU requires reset]")
    assert (reading.free_bytes, reading.clock_mhz, reading.power_watts) == (None, None, 500.0)


def test_every_gpu_is_read_in_order() -> None:
    assert [reading.index for reading in parse_query(f"{IDLE}\n{BROKEN}\n{TROUBLED}\n")] == [0, 1, 3]


def test_links_are_read_between_gpus_alone() -> None:
    links = {(0, 1): "NV18", (0, 2): "PHB", (1, 2): "SYS"}
    assert parse_links(TOPOLOGY) == links | {(other, one): link for (one, other), link in links.items()}


def test_a_single_gpu_has_no_links() -> None:
    text = "\tGPU0\tCPU Affinity\tNUMA Affinity\tGPU NUMA ID\nGPU0\t X \t0-15\t0\t\tN/A\n"
    assert parse_links(text) == {}


def test_text_that_is_no_topology_has_no_links() -> None:
    assert parse_links("Failed to get topology: Not Supported\n") == {}


def test_without_the_program_nothing_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert read_gpus() is None
    assert read_links() == {}


def test_the_program_is_only_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(tmp_path, monkeypatch, f'echo "$*" >> {tmp_path}/asked\necho "{IDLE}"')
    assert [reading.index for reading in read_gpus() or []] == [0]
    (line,) = (tmp_path / "asked").read_text().splitlines()
    query, form = line.split(" ")
    assert query == (
        "--query-gpu=index,uuid,driver_version,memory.total,memory.free,temperature.gpu,clocks.sm,clocks.max.sm,"
        "power.limit,power.default_limit,ecc.errors.uncorrected.volatile.total,clocks_event_reasons.active"
    )
    assert form == "--format=csv,noheader,nounits"


def test_an_older_driver_is_asked_by_the_names_that_it_knows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refusal = 'Field "clocks_event_reasons.active" is not a valid field to query.'
    stand_in(
        tmp_path,
        monkeypatch,
        f"case \"$1\" in *clocks_event_reasons*) echo '{refusal}'; exit 2;; *) echo '{TROUBLED}';; esac",
    )
    assert [reading.index for reading in read_gpus() or []] == [3]


def test_a_driver_that_does_not_answer_is_told_in_its_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = "NVIDIA-SMI has failed because it could not communicate with the NVIDIA driver."
    stand_in(tmp_path, monkeypatch, f"echo '{said}'\necho asked >> {tmp_path}/asked\nexit 9")
    with pytest.raises(EnvironmentUnfitError, match=r"could not communicate .*; see that the driver is loaded"):
        read_gpus()
    assert (tmp_path / "asked").read_text() == "asked\n"


def test_a_machine_without_gpus_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(tmp_path, monkeypatch, "echo 'No devices were found'; exit 6")
    assert read_gpus() == []


def test_links_are_asked_for_and_a_refusal_is_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    topology = tmp_path / "topology"
    topology.write_text(TOPOLOGY)
    show = f'while IFS= read -r line; do printf "%s\\n" "$line"; done < {topology}'
    stand_in(tmp_path, monkeypatch, f'[ "$*" = "topo -m" ] || exit 1\n{show}')
    assert read_links()[0, 1] == "NV18"
    stand_in(tmp_path, monkeypatch, f"{show}\nexit 3")
    assert read_links() == {}
