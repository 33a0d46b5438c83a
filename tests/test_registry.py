"""What can be found by name: files in folders, and entry points of other distributions."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from types import SimpleNamespace

import pytest

import graphopt.passes
from graphopt import registry, spec
from graphopt.errors import UsageError

NOTHING = """
@dataclass(frozen=True)
class Nothing(Pass):
    contract = LOSSY

    def call(self, model):
        return Result(model, False)
"""


@pytest.fixture
def entry_points(monkeypatch):
    """Pretend that another distribution declares entry points."""

    def declare(group, **points):
        made = [SimpleNamespace(name=n, value=v, dist=SimpleNamespace(name="acme")) for n, v in points.items()]
        monkeypatch.setattr(
            importlib.metadata, "entry_points", lambda *, group, wanted=group: made if group == wanted else []
        )
        registry.entries.cache_clear()

    yield declare
    registry.entries.cache_clear()


def test_every_kind_is_a_folder():
    for kind in ("pass", "runtime", "verb", "recipe"):
        for name, entry in registry.entries(kind).items():
            assert entry.name == name
            assert entry.path is None or entry.path.is_file()
            assert not name.startswith("_")
            assert "_" not in name
    assert {"ort", "reference"} <= set(registry.entries("runtime"))
    assert {"apply", "bench", "inspect", "optimize", "passes", "validate"} <= set(registry.entries("verb"))
    assert "default" in registry.entries("recipe")


def test_dropping_a_file_is_the_whole_registration(drop_pass):
    drop_pass("do-nothing", NOTHING)
    entry = registry.entry("pass", "do-nothing")
    assert entry.group == "dropped"
    assert entry.summary == "A pass called do-nothing"
    cls = registry.find("pass", "do-nothing")
    assert cls.__name__ == "Nothing"
    assert cls.pass_name() == "do-nothing"
    assert spec.parse("do-nothing") == cls()


def test_listing_imports_nothing(drop_pass):
    drop_pass("do-nothing", "raise RuntimeError('imported')")
    assert registry.entry("pass", "do-nothing").summary == "A pass called do-nothing"
    with pytest.raises(RuntimeError, match="imported"):
        registry.find("pass", "do-nothing")


def test_private_files_are_helpers(drop_pass):
    drop_pass("_helper", "")
    assert not [name for name in registry.entries("pass") if "helper" in name]


def test_private_folders_are_helpers(drop_pass):
    (drop_pass.family / "_parts").mkdir()
    (drop_pass.family / "_parts" / "piece.py").write_text('"""A piece."""')
    drop_pass("do-nothing", NOTHING)
    assert "piece" not in registry.entries("pass")


def test_a_file_must_define_exactly_one_pass(drop_pass):
    drop_pass("none", "")
    drop_pass("two", NOTHING + NOTHING.replace("class Nothing", "class Other"))
    for name, count in [("none", 0), ("two", 2)]:
        with pytest.raises(RuntimeError, match=f"must define exactly one Pass, found {count}"):
            registry.find("pass", name)


def test_a_pass_may_import_another_base(drop_pass):
    """Only what the file itself defines counts."""
    drop_pass("do-nothing", NOTHING)
    drop_pass("do-less", "from graphopt.passes.dropped.do_nothing import Nothing\nclass Less(Nothing): pass")
    assert registry.find("pass", "do-less").__name__ == "Less"


def test_a_private_base_in_the_file_is_not_the_pass(drop_pass):
    drop_pass("do-nothing", NOTHING.replace("(Pass)", "(_Base)").replace("@", "class _Base(Pass): pass\n@"))
    assert registry.find("pass", "do-nothing").__name__ == "Nothing"


def test_two_files_of_one_name_raise(drop_pass, tmp_path_factory):
    drop_pass("do-nothing", NOTHING)
    other = tmp_path_factory.mktemp("other")
    (other / "family").mkdir()
    (other / "family" / "do_nothing.py").write_text('"""Again."""')
    graphopt.passes.__path__.append(str(other))
    registry.entries.cache_clear()
    try:
        with pytest.raises(RuntimeError, match=r"are named 'do-nothing': .* and "):
            registry.entries("pass")
    finally:
        graphopt.passes.__path__.remove(str(other))
        registry.entries.cache_clear()


def test_unknown_names_suggest_the_nearest():
    with pytest.raises(UsageError, match="unknown runtime 'refrence'; did you mean 'reference'"):
        registry.find("runtime", "refrence")
    with pytest.raises(UsageError, match="unknown recipe 'zzz'; known: cuda, default, lossless"):
        registry.entry("recipe", "zzz")


def test_entry_points(entry_points, drop_pass, monkeypatch, tmp_path):
    drop_pass("_acme", NOTHING)
    (drop_pass.family / "_acme.py").rename(tmp_path / "acme_fuse.py")
    monkeypatch.syspath_prepend(str(tmp_path))
    entry_points("graphopt.passes", **{"acme-fuse": "acme_fuse:Nothing"})
    entry = registry.entry("pass", "acme-fuse")
    assert entry.group == "acme"
    assert entry.summary == "from acme"
    assert "acme_fuse" not in sys.modules
    assert spec.render(spec.parse("acme-fuse")) == "acme-fuse"
    del sys.modules["acme_fuse"]


def test_an_entry_point_must_be_called_what_its_pass_is_called(entry_points, drop_pass, monkeypatch):
    """A step would be recorded under a name that no recipe can read back."""
    drop_pass("_acme", NOTHING)
    entry_points("graphopt.passes", **{"acme-fuse": "graphopt.passes.dropped._acme:Nothing"})
    with pytest.raises(RuntimeError, match="acme-fuse"):
        registry.find("pass", "acme-fuse")


def test_an_entry_point_named_like_a_file_raises(entry_points, drop_pass):
    drop_pass("do-nothing", NOTHING)
    entry_points("graphopt.passes", **{"do-nothing": "acme:Nothing"})
    with pytest.raises(RuntimeError, match=r"are named 'do-nothing': .*dropped.do_nothing and acme:Nothing"):
        registry.entries("pass")


def test_entry_points_add_runtimes_and_verbs(entry_points):
    entry_points("graphopt.runtimes", acme="graphopt.runtimes.reference:ReferenceRuntime")
    assert registry.find("runtime", "acme").__name__ == "ReferenceRuntime"
    entry_points("graphopt.verbs", acme="graphopt.verbs.inspect:command")
    assert registry.find("verb", "acme").name == "inspect"


def test_names_are_found_from_any_folder(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", "from graphopt import registry; print(*registry.entries('verb'))"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == list(registry.entries("verb"))
