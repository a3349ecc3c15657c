"""Installed packages against the ranges that verl-aiops and verl declare in their metadata."""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Iterable, Sequence

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from verl_aiops.doctor.finding import FAULT, OK, Finding

__all__ = ["PACKAGE", "check_versions", "installed_version", "range_text", "supported_ranges"]

PACKAGE = "verl-aiops"
SHOWN = ("verl", "torch", "ray", "transformers", "TransferQueue", "tensordict")


def check_versions() -> Iterable[Finding]:
    """One finding for each package that decides what works, one for all others that are as they should be."""
    own = installed_version(PACKAGE)
    if own is None:
        advice = "Run `pip install .` in its source folder."
        yield Finding("versions", FAULT, PACKAGE, "not installed, only found on the path", advice)
        return
    yield Finding("versions", OK, PACKAGE, own)
    python = ".".join(map(str, sys.version_info[:3]))
    wanted = importlib.metadata.metadata(PACKAGE)["Requires-Python"]
    yield _judge("python", python, SpecifierSet(wanted), "Make an environment with such a Python.")
    ranges = supported_ranges()
    for name in SHOWN:
        yield _judge(name, installed_version(name), ranges.pop(canonicalize_name(name), SpecifierSet()))
    others = [_judge(name, installed_version(name), specifier) for name, specifier in ranges.items()]
    faults = [finding for finding in others if finding.level == FAULT]
    yield from faults
    if not faults:
        yield Finding("versions", OK, "other requirements", f"all {len(others)} installed and in range")


def installed_version(name: str) -> str | None:
    """Version in the metadata of an installed package, None if there is none."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def supported_ranges(extra: str = "", packages: Sequence[str] = (PACKAGE, "verl")) -> dict[str, SpecifierSet]:
    """Canonical name -> versions that all of ``packages`` accept, by their requirements with that extra."""
    ranges: dict[str, SpecifierSet] = {}
    for package in packages:
        for line in importlib.metadata.requires(package) or () if installed_version(package) else ():
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                name = canonicalize_name(requirement.name)
                ranges[name] = ranges.get(name, SpecifierSet()) & requirement.specifier
    return ranges


def range_text(specifier: SpecifierSet) -> str:
    """``>=1,<2`` with the lower bound first, which ``str`` does not promise."""
    return ",".join(sorted(map(str, specifier), key=lambda part: (not part.startswith(">"), part)))


def _judge(name: str, version: str | None, specifier: SpecifierSet, advice: str = "") -> Finding:
    supported = range_text(specifier) or "any version"
    advice = advice or f'Run: pip install "{name}{range_text(specifier)}"'
    if version is None:
        return Finding("versions", FAULT, name, f"not installed (supported: {supported})", advice)
    if specifier.contains(version, prereleases=True):
        return Finding("versions", OK, name, f"{version} (supported: {supported})")
    return Finding("versions", FAULT, name, f"{version}, not supported ({supported})", advice)
