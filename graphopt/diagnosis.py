"""Whether graphopt can work here: the installation, the runtimes, the machine. The core of `graphopt doctor`.

It must work where little else does: nothing but Python's own library is imported here, and everything that may be
broken is tried in another process.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from graphopt import hardware
from graphopt.hardware import Machine
from graphopt.health import family, installation, libraries, surroundings
from graphopt.health.finding import SEVERITY, Finding, one_line

__all__ = ["Diagnosis", "Finding", "diagnose"]


@dataclasses.dataclass(frozen=True)
class Diagnosis:
    """What a diagnosis found.

    Attributes:
        findings: the worst first.
        machine: what graphopt runs on.
        versions: of graphopt and of the packages that it uses, by name; None for those that are not installed.
    """

    findings: tuple[Finding, ...]
    machine: Machine
    versions: dict[str, str | None]

    @property
    def healthy(self) -> bool:
        """Whether nothing is broken."""
        return all(finding.status != "broken" for finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        """Return the whole as plain values."""
        return {
            "healthy": self.healthy,
            "findings": [dataclasses.asdict(finding) for finding in self.findings],
            "machine": self.machine.to_json(),
            "versions": self.versions,
        }


def diagnose() -> Diagnosis:
    """Examine this installation and this machine. Takes some seconds, and imports nothing heavy into this process."""
    machine = hardware.machine()
    packages = [
        *_guarded("onnxruntime", family.check),
        *_guarded("requirements", lambda: installation.requirements(libraries.PACKAGES.values())),
    ]
    faulty = {finding.check for finding in packages if finding.status in ("broken", "warning")}
    tried = _guarded("libraries", lambda: libraries.check(faulty))
    if any(finding.status == "broken" for finding in tried):  # then versions that do not fit are probably why
        packages = [dataclasses.replace(f, status="broken") if f.status == "warning" else f for f in packages]
    findings = [*packages, *tried, installation.extras(), *surroundings.check(machine)]
    findings.sort(key=lambda finding: SEVERITY.index(finding.status))
    return Diagnosis(tuple(findings), machine, _versions())


def _guarded(check: str, examine: Callable[[], Sequence[Finding]]) -> Sequence[Finding]:
    """Return what a check finds. Files that it reads may be damaged in any way, which is a finding too."""
    try:
        return examine()
    except Exception as error:
        message = f"could not be examined: {one_line(f'{type(error).__name__}: {error}')}"
        return [Finding(check, "broken", message, "install graphopt anew, in a fresh virtual environment")]


def _versions() -> dict[str, str | None]:
    versions = {name: installation.version(name) for name in ("graphopt", *libraries.PACKAGES.values())}
    members = {name: found for name in family.NAMES if (found := installation.version(name))}
    return {**versions, **(members or {"onnxruntime": None}), **installation.extras_versions()}
