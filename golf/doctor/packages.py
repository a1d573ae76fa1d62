"""Python and the packages that golf's own metadata asks for: there, of a fitting version, and importable."""

import importlib
import importlib.metadata
import platform
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from golf.doctor.check import Check, Verdict, guarded

_DISTRIBUTION = "golf-hotstart"
_MODULES = {"protobuf": "google.protobuf"}  # packages that are imported by another name than their own
_DEVELOPERS = "dev"  # the extra that only those who change golf need
_TABLES = ("bench", "compare", "demo", "inspect", "requant")
_COMMANDS = {  # packages without which training and evaluation run, and the commands that do not
    "huggingface-hub": ("data fetch",),
    "matplotlib": ("compare", "demo"),
    "packaging": ("doctor",),
    "pandas": _TABLES,
    "tabulate": _TABLES,
}


class Need(NamedTuple):
    """A package that this machine should have."""

    requirement: Requirement
    is_optional: bool


def examine_packages() -> list[Check]:
    """Check Python and each package that the installed golf names, and Triton against the installed torch."""
    try:
        metadata = importlib.metadata.metadata(_DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        remedy = "pip install -e . in golf's folder"
        return [Check("packages", "fail", f"{_DISTRIBUTION} is not installed, so what it needs is unknown", remedy)]
    checks = [check_python(platform.python_version(), metadata["Requires-Python"])]
    lines = importlib.metadata.requires(_DISTRIBUTION) or []
    for need in needs(lines, metadata.get_all("Provides-Extra") or []):
        checks += guarded(f"package {need.requirement.name}", partial(check_package, need))
    return checks + guarded("triton of torch", lambda: check_triton(importlib.metadata.requires("torch") or []))


def check_python(version: str, wanted: str) -> Check:
    """Compare Python's `version` with the specifier `wanted` of golf's metadata."""
    if SpecifierSet(wanted).contains(version, prereleases=True):
        return Check("python", "ok", version)
    return Check("python", "fail", f"{version}, not {wanted}", f"make a virtual environment of Python {wanted}")


def needs(lines: Sequence[str], extras: Sequence[str]) -> list[Need]:
    """Return the packages of requirement `lines` that count on this machine; those of `extras` alone are optional."""
    found = []
    for requirement in map(Requirement, lines):
        marker = requirement.marker
        if marker is None or marker.evaluate({"extra": ""}):
            found.append(Need(requirement, is_optional=False))
        elif any(marker.evaluate({"extra": extra}) for extra in extras if extra != _DEVELOPERS):
            found.append(Need(requirement, is_optional=True))
    return found


def check_package(need: Need) -> Check:
    """Find, compare and import one package. What is wrong with one that no training needs is a warning."""
    name, specifier = need.requirement.name, need.requirement.specifier
    commands = _COMMANDS.get(canonicalize_name(name), ())
    bad: Verdict = "warn" if need.is_optional or commands else "fail"
    users = f" (only for golf {', '.join(commands)})" if commands else ""
    check, install = f"package {name}", f"pip install '{name}{specifier}'"
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return Check(check, bad, f"not installed{users}", install)
    if not specifier.contains(version, prereleases=True):
        return Check(check, bad, f"{version}, not {specifier}{users}", install)
    try:
        importlib.import_module(_MODULES.get(name, name.replace("-", "_")))
    except Exception as error:  # a broken package may raise anything
        text = " ".join(str(error).split())
        why = f"{version}, but importing it raises {type(error).__name__}: {text}{users}"
        return Check(check, bad, why, install.replace("install", "install --force-reinstall", 1))
    return Check(check, "ok", version)


def check_triton(lines: Sequence[str]) -> list[Check]:
    """Compare Triton with what torch's own requirement `lines` pin; a CPU build of torch pins none."""
    pins = [need.requirement for need in needs(lines, []) if need.requirement.name == "triton"]
    if not pins:
        return []
    version, wanted = importlib.metadata.version("triton"), pins[0].specifier
    if wanted.contains(version, prereleases=True):
        return [Check("triton of torch", "ok", version)]
    remedy = f"pip install 'triton{wanted}'"
    return [Check("triton of torch", "fail", f"{version}, but torch was built with triton{wanted}", remedy)]
