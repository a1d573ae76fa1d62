"""What machine numbers belong to: names and versions from the texts of Linux, NVIDIA and git."""

import subprocess
from pathlib import Path

import pytest
import torch

from golf.bench import machine
from golf.bench.machine import cpu_name, describe_machine, driver_version

CPUINFO = """processor\t: 0
vendor_id\t: GenuineIntel
model name\t: Intel(R) Xeon(R) Platinum 8480+
cpu MHz\t\t: 2000.000

processor\t: 1
model name\t: Intel(R) Xeon(R) Platinum 8480+
"""
OPEN_DRIVER = """NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build  (dvs-builder@U22-I3)
GCC version:  gcc version 12.3.0 (Ubuntu 12.3.0-1ubuntu1~22.04)
"""
CLOSED_DRIVER = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.183  Sun May 12 19:39:15 UTC 2024\n"


def test_the_name_of_the_processor() -> None:
    assert cpu_name(CPUINFO) == "Intel(R) Xeon(R) Platinum 8480+"
    assert cpu_name("") is None


@pytest.mark.parametrize(("text", "version"), [(OPEN_DRIVER, "580.95.05"), (CLOSED_DRIVER, "535.183"), ("", None)])
def test_the_version_of_the_driver(text: str, version: str | None) -> None:
    assert driver_version(text) == version


def test_a_machine_without_a_gpu_names_none() -> None:
    facts = describe_machine(torch.device("cpu"))
    assert facts["device"] == "cpu"
    assert facts["cpu"]
    assert facts["cpu_cores"] >= 1
    assert "gpus" not in facts
    assert {"python", "torch", "cuda", "golf-hotstart"} <= facts["versions"].keys()
    assert "flash-attn-3" not in facts["versions"]


def test_a_machine_with_gpus_names_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"NVIDIA H{index}")
    monkeypatch.setattr(machine, "_read", lambda path: OPEN_DRIVER if "nvidia" in str(path) else CPUINFO)
    facts = describe_machine(torch.device("cuda"))
    assert facts["gpus"] == ["NVIDIA H0", "NVIDIA H1"]
    assert facts["driver"] == "580.95.05"
    assert facts["cpu"] == "Intel(R) Xeon(R) Platinum 8480+"


def git(folder: Path, *words: str) -> str:
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    done = subprocess.run(["git", *who, *words], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def commit(folder: Path) -> None:
    (folder / "file").write_text("one")
    git(folder, "init", "-q")
    git(folder, "add", "file")
    git(folder, "commit", "-q", "-m", "first")


def test_a_source_that_was_changed_is_told_by_its_revision(tmp_path: Path) -> None:
    commit(tmp_path)
    revision = git(tmp_path, "rev-parse", "--short=12", "HEAD")
    assert machine._revision(tmp_path) == revision
    (tmp_path / "file").write_text("two")
    assert machine._revision(tmp_path) == f"{revision}-dirty"


def test_a_folder_that_is_no_repository_has_no_revision_even_if_it_lies_in_one(tmp_path: Path) -> None:
    commit(tmp_path)
    (tmp_path / "site-packages").mkdir()
    assert machine._revision(tmp_path / "site-packages") == "none"
    assert machine._revision(tmp_path / "nowhere") == "none"


def test_a_repository_without_a_commit_has_no_revision(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    assert machine._revision(tmp_path) == "none"
