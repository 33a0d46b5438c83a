"""Which packages are installed and fit together, on folders of packages written for the test."""

from __future__ import annotations

import base64
import hashlib
import importlib
import sys

import packaging.requirements
import packaging.utils
import packaging.version
import pytest

from graphopt import hardware
from graphopt.health import family, installation

assert packaging.requirements, "loaded before the search path is replaced"


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A search path with nothing on it but packages that the test writes."""
    monkeypatch.setattr(sys, "path", [str(tmp_path / "site")])
    monkeypatch.setattr(sys, "meta_path", [finder for finder in sys.meta_path if "ditable" not in repr(finder)])
    monkeypatch.delitem(sys.modules, "onnxruntime", raising=False)
    monkeypatch.setattr(hardware, "nvidia_gpus", list)
    (tmp_path / "site").mkdir()
    return Site(tmp_path / "site")


class Site:
    """A folder of installed packages."""

    def __init__(self, root):
        self.root = root

    def install(self, name, version="1.0", *, requires=(), extras=(), files=None, record=True):
        """Write a package's files, and its metadata as pip does; `record=False` leaves out the list of files."""
        info = self.root / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
        lines += [f"Provides-Extra: {extra}" for extra in extras] + [f"Requires-Dist: {text}" for text in requires]
        (info / "METADATA").write_text("\n".join(lines) + "\n")
        rows = []
        for path, content in (files or {}).items():
            file = self.root / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
            digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
            rows.append(f"{path},sha256={digest},{len(content)}")
        if record:
            (info / "RECORD").write_text("\n".join([*rows, f"{info.name}/RECORD,,"]) + "\n")
        importlib.invalidate_caches()
        return self.root


RUNTIME = {
    "onnxruntime/__init__.py": b"",
    "onnxruntime/capi/libonnxruntime.so.1.0": b"x" * 1000,
    "onnxruntime/tool.py": b"print(1)\n",
}


def only(findings):
    findings = list(findings)
    assert len(findings) == 1, findings
    return findings[0]


def test_one_whole_package(site):
    site.install("onnxruntime", "1.2", files=RUNTIME)
    found = only(family.check())
    assert (found.check, found.status, found.fix) == ("onnxruntime", "ok", None)
    assert found.message == "onnxruntime 1.2, all 3 files as they were installed"
    assert family.importable()


def test_none(site):
    found = only(family.check())
    assert (found.status, found.fix.partition("  #")[0]) == ("broken", "pip install 'graphopt[cpu]'")
    assert not family.importable()


@pytest.mark.parametrize(
    ("other", "gpus", "keep"),
    [
        ("onnxruntime-gpu", [], "onnxruntime"),
        ("onnxruntime-gpu", ["Tesla T4"], "onnxruntime-gpu"),
        ("onnxruntime-directml", [], "onnxruntime-directml"),
        ("ort-nightly", [], "ort-nightly"),
        ("my-own-onnxruntime", [], "my-own-onnxruntime"),
    ],
)
@pytest.mark.parametrize("record", [True, False])
def test_two_at_once(site, monkeypatch, other, gpus, keep, record):
    monkeypatch.setattr(hardware, "nvidia_gpus", lambda: gpus)
    site.install("onnxruntime", "1.2", files=RUNTIME)
    site.install(other, "1.3", files=RUNTIME, record=record)
    if not record and other not in family.NAMES:
        (site.root / f"{other.replace('-', '_')}-1.3.dist-info" / "top_level.txt").write_text("onnxruntime\n")
    found = only(family.check())
    assert found.status == "broken"
    assert f"{other} 1.3" in found.message
    assert "onnxruntime 1.2" in found.message
    names = " ".join(sorted(["onnxruntime", other]))
    assert found.fix.startswith(f"pip uninstall -y {names} && pip install {keep}  # or ")


def test_a_relative_that_writes_elsewhere_is_no_second_one(site):
    site.install("onnxruntime", files=RUNTIME)
    site.install("onnxruntime-qnn", files={"onnxruntime_qnn/__init__.py": b""})
    site.install("onnxruntime-extensions", files={"onnxruntime_extensions/__init__.py": b""})
    assert only(family.check()).status == "ok"


def test_what_a_failed_removal_leaves_is_no_second_one(site):
    """On Windows, pip renames what it cannot delete, so that it begins with a tilde."""
    site.install("onnxruntime", "1.2", files=RUNTIME)
    site.install("onnxruntime", "1.1", files={"onnxruntime/__init__.py": b""})
    (site.root / "onnxruntime-1.1.dist-info").rename(site.root / "~nnxruntime-1.1.dist-info")
    assert only(family.check()).message.startswith("onnxruntime 1.2, all")


@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        (lambda root: (root / "onnxruntime/capi/libonnxruntime.so.1.0").unlink(), "No such file"),
        (lambda root: (root / "onnxruntime/tool.py").write_bytes(b"print(2)\n"), "other content"),
        (lambda root: (root / "onnxruntime/tool.py").write_bytes(b""), "0 bytes instead of 9"),
    ],
    ids=["missing", "content", "size"],
)
def test_files_that_are_not_its_own(site, damage, fault):
    damage(site.install("onnxruntime", "1.2", files=RUNTIME))
    found = only(family.check())
    assert found.status == "broken"
    assert "1 of 3 files of onnxruntime 1.2 are missing or changed, for example onnxruntime/" in found.message
    assert fault in found.message
    assert found.fix == "pip install --force-reinstall --no-deps onnxruntime==1.2"


def test_a_package_without_a_list_of_files(site):
    site.install("onnxruntime", "1.2", files=RUNTIME, record=False)
    assert only(family.check()).status == "note"


def test_libraries_of_another_installation(site):
    root = site.install("onnxruntime", "1.2", files=RUNTIME)
    (root / "onnxruntime/capi/libonnxruntime_providers_cuda.so").write_bytes(b"")
    (root / "onnxruntime/capi/notes.txt").write_bytes(b"")
    found = only(family.check())
    assert found.status == "warning"
    assert found.message.endswith(": libonnxruntime_providers_cuda.so")
    assert found.fix.startswith("pip uninstall -y onnxruntime, delete ")


def test_a_folder_that_belongs_to_no_package(site):
    (site.root / "onnxruntime").mkdir()
    importlib.invalidate_caches()
    found = only(family.check())
    assert (found.status, "a folder of another installation is left" in found.message) == ("broken", True)
    assert str(site.root / "onnxruntime") in found.fix
    assert not family.importable()

    (site.root / "onnxruntime" / "__init__.py").touch()
    importlib.invalidate_caches()
    found = only(family.check())
    assert (found.status, "belongs to no installed package" in found.message) == ("warning", True)
    assert family.importable()


def test_a_package_behind_another_on_the_search_path(site, tmp_path, monkeypatch):
    site.install("onnxruntime", "1.2", files=RUNTIME)
    behind = tmp_path / "behind"
    behind.mkdir()
    Site(behind).install("onnxruntime-gpu", "1.3", files=RUNTIME)
    monkeypatch.setattr(sys, "path", [*sys.path, str(behind)])
    hidden, whole = family.check()
    assert (hidden.status, whole.status) == ("warning", "ok")
    assert hidden.message.startswith(f"onnxruntime-gpu 1.3 in {behind.resolve()} is hidden by {site.root}")
    assert whole.message.startswith("onnxruntime 1.2, all")


def test_versions_that_fit(site):
    site.install(
        "graphopt", requires=["One>=1", 'gone; extra == "more"', 'never; python_version < "3"'], extras=["more"]
    )
    site.install("one", requires=["two-words[fast]>=1,<2", "graphopt", "not a requirement!"])
    site.install("Two.Words", requires=['three; extra == "fast"', 'four; extra == "slow"'], extras=["fast", "slow"])
    site.install("three", "3.0rc1")
    found = only(installation.requirements())
    assert (found.check, found.status, found.message) == ("requirements", "ok", "4 packages fit together")


def test_a_version_that_graphopt_cannot_use(site):
    site.install("graphopt", "0.1", requires=["one>=2"])
    site.install("one", "1.9")
    found = only(installation.requirements())
    assert found.status == "broken"
    assert found.message == "one 1.9 is installed, but graphopt 0.1 needs one>=2"
    assert found.fix == "pip install 'one>=2'"


def test_a_version_that_others_cannot_use(site):
    site.install("graphopt", requires=["one", "two", "three"])
    site.install("one", requires=["three>=2.10,!=2.11"])
    site.install("two", requires=["three>=2.9,<4"])
    site.install("three", "1")
    found = only(installation.requirements())
    assert found.status == "warning"
    assert (
        found.message == "three 1 is installed, but one 1.0 needs three!=2.11,>=2.10, and two 1.0 needs three<4,>=2.9"
    )
    assert found.fix == "pip install 'three!=2.11,<4,>=2.10'"


def test_what_is_missing(site):
    site.install("graphopt", requires=["one", "two"])
    site.install("one", requires=["three>=1"])
    three, two = installation.requirements()
    assert (three.message, three.status) == ("three is not installed, but one 1.0 needs three>=1", "broken")
    assert (two.message, two.status) == ("two is not installed, but graphopt 1.0 needs two", "broken")
    assert (three.fix, two.fix) == ("pip install 'three>=1'", "pip install 'two'")
    assert only(installation.requirements(["two"])).message == three.message


def test_extras_are_held_to_their_versions_only_when_installed(site):
    requires = ['plot>=2; extra == "report"', 'search; extra == "tune"']
    site.install("graphopt", requires=requires, extras=["report", "tune"])
    assert only(installation.requirements()).status == "ok"
    site.install("plot", "1", requires=["ink"])
    ink, plot = installation.requirements()
    assert (ink.status, plot.status) == ("warning", "warning"), "graphopt works without them"
    assert plot.message == "plot 1 is installed, but graphopt 1.0 needs plot>=2"


def test_requirements_of_what_is_no_package(site):
    assert only(installation.requirements()).status == "note"


def test_requirements_without_the_library_that_reads_them(site, monkeypatch):
    site.install("graphopt", requires=["one"])
    monkeypatch.setitem(sys.modules, "packaging.requirements", None)
    found = only(installation.requirements())
    assert (found.status, found.fix) == ("note", "pip install packaging")


def test_damaged_metadata(site):
    info = site.install("one") / "one-1.0.dist-info" / "METADATA"
    info.write_bytes(b"Name: one\nVersion: \xff\xfe")
    assert installation.version("one") is None
    assert installation.version("two") is None


def test_extras(site):
    site.install("torch", "2.9")
    found = installation.extras()
    assert (found.check, found.status) == ("extras", "ok")
    assert found.message.startswith("torch 2.9; not installed: jinja2 (pip install 'graphopt[report]')")
    assert installation.extras_versions()["torch"] == "2.9"
    assert installation.extras_versions()["optuna"] is None


def test_an_intruder(site, tmp_path, monkeypatch):
    site.install("one", files={"one/__init__.py": b""})
    assert installation.intruder("one", "one") is None
    assert installation.intruder("none", "none") is None
    place = tmp_path / "place"
    place.mkdir()
    (place / "one.py").touch()
    monkeypatch.setattr(sys, "path", [str(place), *sys.path])
    assert installation.intruder("one", "one") == str(place / "one.py")
