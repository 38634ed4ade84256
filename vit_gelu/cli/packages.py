"""Are Python and the packages those that this package asks for? Read from their metadata: nothing is imported."""

import importlib.metadata as metadata
import platform
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vit_gelu.cli.findings import OK, PROBLEM, WARNING, Finding

if TYPE_CHECKING:
    from packaging.requirements import Requirement

NAME = "vit_gelu"
# Malicious uploads of 2026-04-30 that steal credentials when imported; advisory GHSA-w37p-236h-pfx3.
MALWARE = {"lightning": ("2.6.2", "2.6.3")}


def installed(name: str) -> str | None:
    """The version of an installed package, or None."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def find_malware() -> list[str]:
    """Installed packages of a version known as malicious, as ``name==version``."""
    return [f"{name}=={installed(name)}" for name, bad in MALWARE.items() if installed(name) in bad]


def own_metadata() -> tuple[str, list[str]]:
    """Which Python and which packages this package asks for: from the checkout, else as it was installed.

    Returns:
        The specifier of Python's version, and the requirements.
    """
    project = Path(__file__).resolve().parents[2] / "pyproject.toml"
    if project.is_file():
        table: dict[str, Any] = tomllib.loads(project.read_text(encoding="utf-8")).get("project", {})
        if table.get("name") == NAME:
            return table["requires-python"], table["dependencies"]
    return metadata.metadata(NAME)["Requires-Python"], metadata.requires(NAME) or []


def check_python(specifier: str) -> Finding:
    """Whether this Python is one that the package supports."""
    from packaging.specifiers import SpecifierSet

    version = platform.python_version()
    found = f"{version} at {sys.executable}"
    if version not in SpecifierSet(specifier, prereleases=True):
        return Finding("python", PROBLEM, found, f"make a virtual environment with Python {specifier}")
    return Finding("python", OK, found)


def check_packages(requirements: list[str]) -> list[Finding]:
    """One finding for all packages that are as they should be, and one for each that is not.

    Args:
        requirements: of this package, as in ``pyproject.toml``; those of its extras are left out.
    """
    from packaging.requirements import Requirement

    wanted = [r for r in map(Requirement, requirements) if "extra" not in str(r.marker or "")]
    found, good = [], []
    for requirement in wanted:
        version = installed(requirement.name)
        if f"{requirement.name}=={version}" in find_malware():
            found.append(_malware(requirement.name, version))
        elif version is None or not requirement.specifier.contains(version, prereleases=True):
            found.append(_unfit(requirement, version))
        else:
            good.append(f"{requirement.name} {version}")
            found += _check_needs(requirement)
    if good:
        found.insert(0, Finding("packages", OK, ", ".join(good)))
    return found


def _malware(name: str, version: str | None) -> Finding:
    return Finding(
        name,
        PROBLEM,
        f"{version} is malware that steals credentials when it is imported (GHSA-w37p-236h-pfx3)",
        f'remove it at once: python -m pip uninstall -y {name}; then python -m pip install "{name}>=2.6.4". '
        "If it was ever imported here, replace every password, token and key that this account can read",
    )


def _unfit(requirement: "Requirement", version: str | None) -> Finding:
    plain = f"{requirement.name}{_extras(requirement)}{requirement.specifier}"
    found = "is not installed" if version is None else f"{version}; needed: {requirement.specifier}"
    return Finding(requirement.name, PROBLEM, found, f'python -m pip install "{plain}"')


def _extras(requirement: "Requirement") -> str:
    return f"[{','.join(sorted(requirement.extras))}]" if requirement.extras else ""


def _needs(requirement: "Requirement") -> Iterator["Requirement"]:
    from packaging.requirements import Requirement

    for text in metadata.requires(requirement.name) or []:
        need = Requirement(text)
        if need.marker is None or any(need.marker.evaluate({"extra": e}) for e in ("", *requirement.extras)):
            yield need


def _check_needs(requirement: "Requirement") -> list[Finding]:
    """Whether what a package asks for itself is there, one level deep; torchvision asks for its torch."""
    found = []
    for need in _needs(requirement):
        version = installed(need.name)
        if version is None and "extra" not in str(need.marker or ""):
            # A package that is missing is found by importing; distributions of torch leave out some.
            continue
        if version is None or not need.specifier.contains(version, prereleases=True):
            pair = {requirement.name, need.name} <= {"torch", "torchvision"}
            here = f"{need.name} {version}" if version else "it is not installed"
            plain = f"{requirement.name}{_extras(requirement)}"
            found.append(
                Finding(
                    f"{requirement.name}, {need.name}",
                    PROBLEM if pair or version is None else WARNING,
                    f"{requirement.name} {installed(requirement.name)} needs {need.name}{need.specifier}; "
                    + here,
                    f'python -m pip install --upgrade "{plain}" "{need.name}{need.specifier}"',
                )
            )
    return found
