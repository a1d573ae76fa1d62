"""Packages: which are needed here, and what is said of one that is missing, old or broken."""

import importlib.metadata
import sys
import tomllib
from functools import partial

import pytest
from packaging.requirements import Requirement

from golf.doctor import packages
from golf.doctor.packages import Need, check_package, check_python, check_triton, examine_packages, needs
from tests.test_architecture import FILES, ROOT, imports, packages_of

LINES = [
    "torch<2.14,>=2.9",
    'winloop; platform_system == "Nowhere"',
    'filelock>=3; platform_system != "Nowhere"',
    'matplotlib>=3.9; extra == "plots"',
    'pytest>=8.3; extra == "dev"',
]
needed = partial(Need, is_optional=False)


def test_what_is_for_another_system_or_for_developers_is_not_needed() -> None:
    found = {need.requirement.name: need.is_optional for need in needs(LINES, ["plots", "dev"])}
    assert found == {"torch": False, "filelock": False, "matplotlib": True}


def test_an_extra_that_is_not_offered_is_not_needed() -> None:
    assert [need.requirement.name for need in needs(LINES, [])] == ["torch", "filelock"]


def test_a_fitting_package_is_told_with_its_version() -> None:
    check = check_package(needed(Requirement("click>=8")))
    assert (check.name, check.verdict) == ("package click", "ok")
    assert check.value == importlib.metadata.version("click")


@pytest.mark.parametrize(("is_optional", "verdict"), [(False, "fail"), (True, "warn")])
def test_a_missing_package_fails_and_an_optional_one_warns(is_optional: bool, verdict: str) -> None:
    check = check_package(Need(Requirement("no-such-package<4,>=3.5"), is_optional))
    assert (check.verdict, check.value) == (verdict, "not installed")
    assert check.remedy == "pip install 'no-such-package<4,>=3.5'"


def test_a_package_of_another_version_fails_and_says_both() -> None:
    check = check_package(needed(Requirement("click>=99")))
    assert check.verdict == "fail"
    assert check.value == f"{importlib.metadata.version('click')}, not >=99"
    assert check.remedy == "pip install 'click>=99'"


def test_a_package_that_cannot_be_imported_fails_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "click", None)
    check = check_package(needed(Requirement("click>=8")))
    assert check.verdict == "fail"
    assert "ModuleNotFoundError: import of click halted" in check.value
    assert check.remedy == "pip install --force-reinstall 'click>=8'"


@pytest.mark.parametrize("name", ["huggingface_hub", "huggingface-hub"])
def test_a_package_of_one_command_only_warns_and_names_the_command(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "1.2.3")
    check = check_package(needed(Requirement(f"{name}>=2.4")))
    assert (check.verdict, check.value) == ("warn", "1.2.3, not >=2.4 (only for golf data fetch)")
    assert check.remedy == f"pip install '{name}>=2.4'"


def test_pandas_is_for_tables_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    check = check_package(needed(Requirement("pandas>=2")))
    assert check.verdict == "warn"
    assert check.value.endswith(" (only for golf bench, compare, demo, inspect, requant)")


def test_what_single_commands_need_is_what_their_code_imports_and_training_does_not() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = project["dependencies"] + project["optional-dependencies"]["plots"]
    names = [Requirement(line).name for line in lines]
    modules = {name: packages._MODULES.get(name, name.replace("-", "_")) for name in names}
    used = {tool.rpartition(".")[2]: packages_used(tool) for tool in FILES if tool.startswith("golf.tools.")}
    users = {
        name.replace("_", "-"): {tool for tool, found in used.items() if module.partition(".")[0] in found}
        for name, module in modules.items()
    }
    single = {name: tools for name, tools in users.items() if not tools & {"train", "evaluate"}}
    assert {name: {words.split()[0] for words in commands} for name, commands in packages._COMMANDS.items()} == single


def packages_used(module: str) -> set[str]:
    """Packages that a module and all that it imports import; SentencePiece's messages are read by protobuf."""
    seen, waiting = {module}, [module]
    while waiting:
        found = imports(waiting.pop()) - seen
        seen |= found
        waiting += found
    used = {package for one in seen for package in packages_of(one)}
    return used | {"google"} if "sentencepiece" in used else used


@pytest.mark.parametrize("name", ["protobuf", "tomli-w", "huggingface_hub"])
def test_a_package_whose_module_has_another_name_is_imported_by_it(name: str) -> None:
    assert check_package(needed(Requirement(name))).verdict == "ok"


@pytest.mark.parametrize(
    ("version", "verdict"), [("3.10.14", "fail"), ("3.11.0", "ok"), ("3.12.3", "ok"), ("3.13.0rc1", "ok")]
)
def test_python_is_compared_with_what_golf_asks_for(version: str, verdict: str) -> None:
    assert check_python(version, ">=3.11").verdict == verdict


@pytest.mark.parametrize(
    ("version", "verdict"), [("2.11.0+cu130", "ok"), ("2.14.0a0+git1", "fail"), ("2.8.0", "fail"), ("2.13.1", "ok")]
)
def test_versions_of_one_s_own_build_count_as_what_they_are(
    monkeypatch: pytest.MonkeyPatch, version: str, verdict: str
) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda name: version)
    assert check_package(needed(Requirement("torch<2.14,>=2.9"))).verdict == verdict


@pytest.mark.parametrize(("version", "verdict"), [("3.6.0", "ok"), ("3.9.0", "fail")])
def test_triton_must_be_the_one_that_torch_was_built_with(
    monkeypatch: pytest.MonkeyPatch, version: str, verdict: str
) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda name: version)
    (check,) = check_triton(["sympy>=1.13", "triton==3.6.0; platform_system != 'Nowhere'"])
    assert (check.verdict, check.value.partition(",")[0]) == (verdict, version)


def test_a_torch_that_pins_no_triton_has_no_such_check() -> None:
    assert check_triton(["sympy>=1.13"]) == []


def test_a_golf_that_is_not_installed_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "_DISTRIBUTION", "no-such-package")
    (check,) = examine_packages()
    assert (check.verdict, check.value) == ("fail", "no-such-package is not installed, so what it needs is unknown")


def test_every_package_of_golf_is_sound_where_its_tests_run() -> None:
    checks = {check.name: check.verdict for check in examine_packages()}
    assert {"python", "package torch", "package brotli", "package huggingface_hub"} <= checks.keys()
    assert {name for name, verdict in checks.items() if verdict == "fail"} == set()
