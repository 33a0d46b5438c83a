"""Imports point one way, and heavy libraries load late."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = {"onnxruntime", "torch", "sklearn", "matplotlib", "jinja2", "optuna", "accelerate"}
PACKAGES = {"graphopt": ROOT / "graphopt", **{f"graphopt.{n}": ROOT / n for n in ("passes", "runtimes", "models")}}
FILES = [
    (".".join((package, *path.relative_to(folder).with_suffix("").parts)), path)
    for package, folder in PACKAGES.items()
    for path in sorted(folder.rglob("*.py"))
]


WITHOUT_TORCH = {f"graphopt.training{name}" for name in ("", ".settings", ".finetuning", ".folds", ".events")}
"""What the command line loads of the training package; the rest of it loads with the first training."""


def imports(path, *, late=False):
    """Return the modules that a file imports at load time, or (`late`) anywhere; names of `from` imports count as modules."""

    def walk(node):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                continue
            if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)) and not late:
                continue
            if isinstance(child, ast.Import):
                yield from ((alias.name, 0) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                yield from ((f"{child.module}.{alias.name}", child.level) for alias in child.names)
            yield from walk(child)

    return list(walk(ast.parse(path.read_text(encoding="utf-8"))))


def below(module, *packages):
    return any(module == package or module.startswith(f"{package}.") for package in packages)


@pytest.mark.parametrize(("module", "path"), FILES, ids=[module for module, _ in FILES])
def test_imports_point_one_way(module, path):
    for imported, level in imports(path, late=True):
        assert level == 0, f"relative import of {imported}; absolute imports only"
        assert not below(imported, "passes", "runtimes", "models"), f"{imported}: import graphopt.{imported}"
        if below(module, "graphopt.passes"):
            assert not below(imported, "graphopt.runtimes", "graphopt.models"), imported
            if below(imported, "graphopt.passes"):
                family = ".".join(module.split(".")[:3])
                assert below(imported, family), f"{imported} belongs to another family"
                own = imported.removeprefix(family).lstrip(".")
                assert own.startswith("_"), f"{imported} is a sibling pass; share code in a file named _something.py"
        elif below(module, "graphopt.runtimes"):
            assert not below(imported, "graphopt.passes", "graphopt.models"), imported
        elif not below(module, "graphopt.models"):
            assert not below(imported, "graphopt.passes", "graphopt.runtimes", "graphopt.models"), imported


@pytest.mark.parametrize(("module", "path"), FILES, ids=[module for module, _ in FILES])
def test_heavy_libraries_load_late(module, path):
    if below(module, "graphopt.models", "graphopt.runtimes._torch", "graphopt.exporting"):
        return
    if below(module, "graphopt.training") and module not in WITHOUT_TORCH:
        return
    for imported, _ in imports(path):
        assert imported.split(".")[0] not in HEAVY, f"{imported} is imported when {module} loads"


@pytest.mark.parametrize(("module", "path"), FILES, ids=[module for module, _ in FILES])
def test_onnxruntime_is_used_by_its_runtime_only(module, path):
    if below(module, "graphopt.models", "graphopt.runtimes"):
        return
    for imported, _ in imports(path, late=True):
        assert imported.split(".")[0] != "onnxruntime", f"{imported}: ask graphopt.runtime for a session"


LOADED = (
    "import sys, json; print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})), file=sys.__stderr__)"
)
HELP = (
    "import sys; sys.argv = ['graphopt', '--help']\nfrom graphopt.cli import main\ntry:\n    main()\n"
    f"except SystemExit:\n    pass\n{LOADED}"
)


@pytest.mark.parametrize(
    "code", [f"import graphopt; graphopt.__version__; graphopt.__all__; {LOADED}", HELP], ids=["import", "help"]
)
def test_what_is_cheap_stays_cheap(code, tmp_path):
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    loaded = set(json.loads(done.stderr))
    assert not loaded & (HEAVY | {"onnx", "onnx_ir", "onnxscript", "numpy", "rich", "yaml", "google"})


def test_the_walk_itself_finds_what_it_should(tmp_path):
    file = tmp_path / "f.py"
    file.write_text(
        "import a.b\nfrom c import d, e\nfrom . import f\nif TYPE_CHECKING:\n    import g\n"
        "class C:\n    import h\n    def m(self):\n        import i\nif x:\n    import j\n"
    )
    assert imports(file) == [("a.b", 0), ("c.d", 0), ("c.e", 0), ("None.f", 1), ("h", 0), ("j", 0)]
    assert ("i", 0) in imports(file, late=True)
    assert ("g", 0) not in imports(file, late=True)
    assert {"graphopt.cli", "graphopt.passes", "graphopt.runtimes.ort", "graphopt.models"} <= {
        module.removesuffix(".__init__") for module, _ in FILES
    }
