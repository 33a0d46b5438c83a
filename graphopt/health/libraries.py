"""Whether the libraries that graphopt uses can be imported, and what its runtimes find when they examine themselves."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

from graphopt import registry
from graphopt.health import family, installation, trial
from graphopt.health.finding import Finding
from graphopt.health.trial import Outcome

PACKAGES = {
    "click": "click",
    "rich.console": "rich",
    "yaml": "pyyaml",
    "numpy": "numpy",
    "ml_dtypes": "ml_dtypes",
    "google.protobuf.descriptor": "protobuf",
    "onnx": "onnx",
    "onnx_ir": "onnx-ir",
    "onnxscript": "onnxscript",
}
"""Module and package of each library, after those that it imports itself."""

_IMPORTS = {
    "ml_dtypes": ("numpy",),
    "onnx": ("numpy", "protobuf", "ml_dtypes"),
    "onnx_ir": ("numpy", "ml_dtypes", "onnx"),
    "onnxscript": ("numpy", "onnx", "onnx-ir"),
    "onnxruntime": ("numpy",),
}
"""Packages without which a module cannot be imported, either: mending them comes first."""


def check(faulty: Collection[str]) -> list[Finding]:
    """Import every library and ask every runtime, in other processes (see `graphopt.health.trial`).

    Args:
        faulty: the checks of packages that found something; what does not import may be their consequence.
    """
    packages = dict(PACKAGES)
    if family.importable():
        packages["onnxruntime"] = next((member.name for member in family.members()), "onnxruntime")
    runtimes = list(registry.entries("runtime"))
    outcomes = trial.attempt([*(f"import {module}" for module in packages), *(f"runtime {name}" for name in runtimes)])
    findings = list(_imports(packages, outcomes[: len(packages)], faulty))
    complete = "onnxruntime" in packages and all(finding.status == "ok" for finding in findings)
    for name, outcome in zip(runtimes, outcomes[len(packages) :], strict=True):
        findings += _runtime(name, outcome, complete)
    return findings


def _imports(packages: Mapping[str, str], outcomes: Sequence[Outcome], faulty: Collection[str]) -> Iterator[Finding]:
    fine, bad = [], []
    victims: dict[str, list[str]] = {}
    for (module, package), outcome in zip(packages.items(), outcomes, strict=True):
        if outcome.error is None:
            fine.append(package)
            continue
        bad.append(package)
        culprits = [name for name in _IMPORTS.get(module, ()) if name in bad]
        if culprits:
            victims.setdefault(culprits[0], []).append(package)
            continue
        version = installation.version(package)
        intruder = installation.intruder(module.partition(".")[0], package)
        if intruder:
            message = f"{package} cannot be imported, because {intruder} is taken for it: {outcome.error}"
            fix = "rename or move that, or start graphopt from another folder"
            yield Finding("libraries", "broken", message, fix)
            continue
        if version is None and not outcome.died:
            yield Finding("libraries", "broken", f"{package} is not installed", f"pip install {package}")
            continue
        fix = f"pip install --force-reinstall --no-deps {package}=={version}"
        causes = [check for check in ("requirements", "onnxruntime") if check in {"requirements", module} & {*faulty}]
        if causes:
            fix = f"first mend what is said about {' and '.join(causes)}"
        yield Finding("libraries", "broken", f"{package} {version} cannot be imported: {outcome.error}", fix)
    for culprit, names in victims.items():
        yield Finding("libraries", "broken", f"{', '.join(names)} cannot be imported, either, for want of {culprit}")
    if fine:
        yield Finding("libraries", "ok", f"{', '.join(fine)} can be imported")


def _runtime(name: str, outcome: Outcome, libraries_complete: bool) -> list[Finding]:
    check = f"runtime {name}"
    if outcome.error is None:
        return [Finding(**fields) for fields in outcome.value]
    if not libraries_complete:
        return [Finding(check, "note", "not examined, because libraries cannot be imported")]
    if outcome.error.startswith(("ModuleNotFoundError", "UserError")):
        return [Finding(check, "note", f"not examined, because it is not installed: {outcome.error}")]
    return [Finding(check, "broken", f"did not survive its examination: {outcome.error}")]
