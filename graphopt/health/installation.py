"""Which packages are installed, and whether they fit together. Reads metadata only and imports none of them."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Collection, Iterator
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from graphopt.health.finding import Finding

if TYPE_CHECKING:
    from packaging.requirements import Requirement
    from packaging.specifiers import SpecifierSet

_EXTRAS = {"torch": "torch", "jinja2": "report", "matplotlib": "report", "optuna": "tune"}
"""Optional libraries, and the extra of graphopt that brings each."""


@dataclasses.dataclass(frozen=True)
class _Demand:
    """That one package requires another.

    Attributes:
        by: the package that requires it, with its version.
        needs: which versions will do.
        direct: whether it is graphopt that requires it.
        optional: whether that is for an extra only.
    """

    by: str
    needs: SpecifierSet
    direct: bool
    optional: bool


def version(name: str) -> str | None:
    """Return the version of an installed package, or None when it is not installed or does not tell."""
    try:
        return metadata.version(name)
    except (metadata.PackageNotFoundError, KeyError, ValueError):  # or its metadata is damaged
        return None


def intruder(module: str, package: str) -> str | None:
    """Return the file or folder that Python takes for a module although it is not the installed package's."""
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.origin or version(package) is None:
        return None
    own = Path(str(metadata.distribution(package).locate_file(""))).resolve()
    return None if Path(spec.origin).resolve().is_relative_to(own) else spec.origin


def extras_versions() -> dict[str, str | None]:
    """Return the versions of optional libraries, None for those that are not installed."""
    return {name: version(name) for name in _EXTRAS}


def extras() -> Finding:
    """Say which optional libraries are there."""
    versions = extras_versions()
    present = ", ".join(f"{name} {found}" for name, found in versions.items() if found) or "none"
    absent = [f"{name} (pip install 'graphopt[{_EXTRAS[name]}]')" for name, found in versions.items() if not found]
    return Finding("extras", "ok", present + (f"; not installed: {', '.join(absent)}" if absent else ""))


def requirements(elsewhere: Collection[str] = ()) -> list[Finding]:
    """Check that what graphopt requires, and what that requires in turn, is installed in versions that fit.

    Args:
        elsewhere: names of packages whose absence is not reported here.
    """
    try:
        demands = _demands("graphopt")
    except ImportError:
        message = "not checked, because the package 'packaging' is missing"
        return [Finding("requirements", "note", message, "pip install packaging")]
    if not demands:
        return [Finding("requirements", "note", "not checked, because graphopt itself is not installed as a package")]
    findings = [
        finding for name, wanted in sorted(demands.items()) for finding in _unmet(name, wanted, name in elsewhere)
    ]
    return findings or [Finding("requirements", "ok", f"{sum(map(bool, map(version, demands)))} packages fit together")]


def _unmet(name: str, demands: Collection[_Demand], absence_reported: bool) -> Iterator[Finding]:
    found = version(name)
    if found is None:
        missed = [demand for demand in demands if not (demand.optional and demand.direct)]
        if missed and not absence_reported:
            severe = any(not demand.optional for demand in missed)
            message = f"{name} is not installed, but {_needed(name, missed)}"
            yield Finding("requirements", "broken" if severe else "warning", message, _install(name, demands))
        return
    missed = [demand for demand in demands if not demand.needs.contains(found, prereleases=True)]
    if missed:
        severe = any(demand.direct and not demand.optional for demand in missed)
        message = f"{name} {found} is installed, but {_needed(name, missed)}"
        yield Finding("requirements", "broken" if severe else "warning", message, _install(name, demands))


def _needed(name: str, demands: Collection[_Demand]) -> str:
    return ", and ".join(dict.fromkeys(f"{demand.by} needs {name}{demand.needs}" for demand in demands))


def _install(name: str, demands: Collection[_Demand]) -> str:
    """Return the command that installs a version to please all; of lower bounds only the highest says something."""
    from packaging.version import Version

    parts = {part for demand in demands for part in demand.needs}
    lowest = max(
        (part for part in parts if part.operator == ">="), key=lambda part: Version(part.version), default=None
    )
    told = sorted(str(part) for part in parts if part.operator != ">=" or part == lowest)
    return f"pip install '{name}{','.join(told)}'"


def _demands(root: str) -> dict[str, list[_Demand]]:
    """Return by name what the closure of installed requirements of a package demands; empty when it is not installed.

    Raises:
        ImportError: the library that reads requirements is missing.
    """
    from packaging.utils import canonicalize_name

    demands: dict[str, list[_Demand]] = {}
    seen = set()
    queue = [(root, frozenset(_provided(root)), False)]
    for name, wanted, optional in queue:
        for requirement, for_extra in _requirements(name, wanted):
            required = canonicalize_name(requirement.name)
            demand = _Demand(
                f"{name} {version(name)}", requirement.specifier, name == root, optional or (for_extra and name == root)
            )
            demands.setdefault(required, []).append(demand)
            key = required, frozenset(requirement.extras), demand.optional
            if key not in seen and version(required):
                seen.add(key)
                queue.append(key)
    return demands


def _requirements(name: str, extras: Collection[str]) -> Iterator[tuple[Requirement, bool]]:
    """Yield what a package requires here with these extras, and whether that is for the sake of an extra."""
    from packaging.requirements import InvalidRequirement, Requirement

    try:
        texts = metadata.requires(name) or ()
    except metadata.PackageNotFoundError:
        return
    for text in texts:
        try:
            requirement = Requirement(text)
        except InvalidRequirement:  # old packages wrote what no standard knows; pip ignores it, too
            continue
        marker = requirement.marker
        if marker is None or marker.evaluate({"extra": ""}):
            yield requirement, False
        elif any(marker.evaluate({"extra": extra}) for extra in extras):
            yield requirement, True


def _provided(name: str) -> list[str]:
    try:
        return metadata.metadata(name).get_all("Provides-Extra") or []
    except metadata.PackageNotFoundError:
        return []
