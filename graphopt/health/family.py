"""The packages that install the folder `onnxruntime`: there must be one of them, whole.

`onnxruntime`, `onnxruntime-gpu` and their kin all write the same files. pip does not know that they exclude each
other: the later one overwrites the earlier one, and removing either takes files from the other.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.util
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path

from graphopt import hardware
from graphopt.health.finding import Finding

_FOLDER = "onnxruntime"
NAMES = (
    "onnxruntime",
    "onnxruntime-cann",
    "onnxruntime-directml",
    "onnxruntime-gpu",
    "onnxruntime-migraphx",
    "onnxruntime-openvino",
    "onnxruntime-qnn",
    "onnxruntime-rocm",
    "onnxruntime-silicon",
    "onnxruntime-training",
    "onnxruntime-vitisai",
    "ort-nightly",
    "ort-nightly-directml",
    "ort-nightly-gpu",
)
"""Members known by name, for installations that do not say which files are theirs."""

_NATIVE = (".so", ".dll", ".pyd", ".dylib")
_SMALL = 200_000
"""Bytes up to which a file's hash is checked, too: the sizes of all take milliseconds, the hashes of all seconds."""


def check() -> list[Finding]:
    """Check that exactly one package of the family is installed, and that its files are its own."""
    found = members()
    spec = importlib.util.find_spec(_FOLDER)
    place = Path(spec.origin).parent if spec and spec.origin else None
    if not found:
        return [_no_package(place, list(spec.submodule_search_locations or ()) if spec else [])]
    findings = list(_hidden(found, place)) if place else []
    here = [member for member in found if place is None or _place(member) == place.resolve()] or found
    if len({_place(member) for member in here}) < len(here):
        return [*findings, _several(here)]
    return [*findings, *_files(here[0])]


def importable() -> bool:
    """Return whether there is something to import, be it damaged."""
    spec = importlib.util.find_spec(_FOLDER)
    return spec is not None and spec.origin is not None


def members() -> list[metadata.Distribution]:
    """Return the installed packages of the family, in alphabetical order."""
    names = {name.lower() for name in metadata.packages_distributions().get(_FOLDER, ()) if name}
    found = []
    for name in sorted(names.union(NAMES)):
        try:
            member = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
        if member.files is None or any(file.as_posix() == f"{_FOLDER}/__init__.py" for file in member.files):
            found.append(member)
    return found


def _no_package(place: Path | None, left: Sequence[str]) -> Finding:
    install = "pip install 'graphopt[cpu]'  # or 'graphopt[gpu]' for an NVIDIA GPU"
    if place:
        message = f"imported from {place}, which belongs to no installed package, so that it cannot be checked"
        return Finding(_FOLDER, "warning", message, f"if it is not a build of your own, delete {place} and {install}")
    if left:
        message = f"not installed, but a folder of another installation is left: {left[0]}"
        return Finding(_FOLDER, "broken", message, f"delete {left[0]} and {install}")
    return Finding(_FOLDER, "broken", "not installed; graphopt runs and measures models with it", install)


def _hidden(found: Sequence[metadata.Distribution], place: Path) -> Iterator[Finding]:
    """Tell of packages whose folder lies behind another one on the search path."""
    for member in found:
        if _place(member) != place.resolve():
            message = f"{_title(member)} in {_place(member).parent} is hidden by {place}, which is imported instead"
            fix = f"if that is not what you want, remove {place} from Python's search path"
            yield Finding(_FOLDER, "warning", message, fix)


def _several(found: Sequence[metadata.Distribution]) -> Finding:
    names = [member.name for member in found]
    special = [name for name in names if name != _FOLDER]
    usable = [name for name in special if "gpu" not in name or hardware.nvidia_gpus()]
    keep = usable[0] if usable else names[0]
    others = " or ".join(name for name in names if name != keep)
    return Finding(
        _FOLDER,
        "broken",
        f"{' and '.join(map(_title, found))} are installed at once and have overwritten each other's files",
        f"pip uninstall -y {' '.join(names)} && pip install {keep}  # or {others}, but only one of them",
    )


def _files(member: metadata.Distribution) -> list[Finding]:
    """Compare the files on disk with the package's own list."""
    if member.files is None:
        message = f"{_title(member)} has no list of its files, so that they cannot be checked"
        return [Finding(_FOLDER, "note", message)]
    listed = [file for file in member.files if file.parts[0] == _FOLDER and file.size is not None]
    wrong = [(file, fault) for file in listed if (fault := _fault(file))]
    if wrong:
        name, fault = wrong[0]
        message = (
            f"{len(wrong)} of {len(listed)} files of {_title(member)} are missing or changed, for example {name}: "
            f"{fault}; another package of its family may have overwritten or removed them"
        )
        fix = f"pip install --force-reinstall --no-deps {member.name}=={member.version}"
        return [Finding(_FOLDER, "broken", message, fix)]
    own = {Path(str(file.locate())).resolve() for file in member.files}
    folder = _place(member)
    strays = sorted(p.name for p in (folder / "capi").glob("*") if _is_native(p) and p.resolve() not in own)
    if strays:
        message = f"libraries of another installation are left in {folder / 'capi'}: {', '.join(strays)}"
        fix = f"pip uninstall -y {member.name}, delete {folder}, and pip install {member.name}=={member.version}"
        return [Finding(_FOLDER, "warning", message, fix)]
    return [Finding(_FOLDER, "ok", f"{_title(member)}, all {len(listed)} files as they were installed")]


def _fault(file: metadata.PackagePath) -> str | None:
    path = Path(str(file.locate()))
    try:
        size = path.stat().st_size
        if size != file.size:
            return f"{size:,} bytes instead of {file.size:,}"
        if file.hash and file.hash.mode == "sha256" and size <= _SMALL:
            digest = base64.urlsafe_b64encode(hashlib.sha256(path.read_bytes()).digest())
            return None if digest.rstrip(b"=").decode() == file.hash.value else "other content"
    except OSError as error:
        return error.strerror or "cannot be read"
    return None


def _is_native(path: Path) -> bool:
    return any(suffix in path.suffixes for suffix in _NATIVE)


def _place(member: metadata.Distribution) -> Path:
    return Path(str(member.locate_file(_FOLDER))).resolve()


def _title(member: metadata.Distribution) -> str:
    return f"{member.name} {member.version}"
