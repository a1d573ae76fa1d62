"""What is installed and what importing it costs."""

import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
HEAVY = ("torch", "pandas", "numpy", "matplotlib", "safetensors", "rich", "brotli", "sentencepiece")


def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def heavy_imports_of(code: str) -> list[str]:
    """Which of the heavy packages, and which tools, a fresh interpreter has imported after running `code`."""
    report = (
        f"import sys; print(*[m for m in sys.modules if m in {HEAVY!r} or m.startswith('golf.tools')], file=sys.stderr)"
    )
    code = f"import atexit; atexit.register(lambda: exec({report!r})); {code}"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return result.stderr.split()


def test_the_packages_of_pyproject_are_the_folders_with_an_init() -> None:
    folders = [ROOT / "golf", *(path for path in (ROOT / "golf").rglob("*") if path.is_dir())]
    names = [".".join(folder.relative_to(ROOT).parts) for folder in folders if (folder / "__init__.py").exists()]
    names += [f"golf.{name}" for name in ("tools", "recipes") if (ROOT / name / "__init__.py").exists()]
    assert sorted(project()["tool"]["setuptools"]["packages"]) == sorted(names)


def test_every_folder_of_modules_is_a_package() -> None:
    modules = [path for name in ("golf", "tools", "recipes") for path in (ROOT / name).rglob("*.py")]
    assert [path for path in modules if not (path.parent / "__init__.py").exists()] == []


def test_recipes_and_the_type_marker_are_shipped() -> None:
    assert project()["tool"]["setuptools"]["package-data"] == {"golf": ["py.typed"], "golf.recipes": ["*.toml"]}
    assert (ROOT / "golf" / "py.typed").exists()
    assert [path for path in (ROOT / "recipes").rglob("*.toml") if path.parent != ROOT / "recipes"] == []


def test_the_script_is_the_command_shell() -> None:
    assert project()["project"]["scripts"] == {"golf": "golf.cli:main"}


@pytest.mark.parametrize(
    "module", ["golf", "golf.cli", "golf.config", "golf.errors", "golf.files", "golf.model_config", "golf.recipe"]
)
def test_importing_costs_no_heavy_package(module: str) -> None:
    assert heavy_imports_of(f"import {module}") == []


@pytest.mark.parametrize("words", [["--help"], ["--version"]])
def test_help_and_version_cost_no_heavy_package_and_no_tool(words: list[str]) -> None:
    assert heavy_imports_of(f"from golf.cli import cli; cli.main({words!r})") == []


@pytest.mark.parametrize("path", sorted((ROOT / "tools").glob("[!_]*.py")), ids=lambda path: path.stem)
def test_importing_a_tool_costs_no_heavy_package(path: Path) -> None:
    assert heavy_imports_of(f"import golf.tools.{path.stem}") == ["golf.tools", f"golf.tools.{path.stem}"]


@pytest.mark.parametrize("path", sorted((ROOT / "tools").glob("[!_]*.py")), ids=lambda path: path.stem)
def test_the_help_of_a_tool_costs_no_heavy_package(path: Path) -> None:
    name = path.stem.replace("_", "-")
    imported = heavy_imports_of(f"from golf.cli import cli; cli.main([{name!r}, '--help'])")
    assert imported == ["golf.tools", f"golf.tools.{path.stem}"]
