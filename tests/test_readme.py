"""What README promises, run as written."""

from __future__ import annotations

import importlib.util
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import onnx_ir as ir
import pytest
from onnx import parser

from graphopt.passbase import Pass

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder in which README's relative paths hold and that may be written to."""
    shutil.copytree(ROOT / "models" / "digits", tmp_path / "models" / "digits")
    return tmp_path


def test_the_main_job_runs_as_written(checkout: Path) -> None:
    install, _, command = blocks("sh")[0].strip().partition(" && ")
    assert install == "pip install '.[cpu]'"
    words = shlex.split(command)
    assert words[0] == "graphopt"
    done = subprocess.run([sys.executable, "-m", *words], cwd=checkout, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    for word in ("quantize", "accuracy", "95 % interval", "times the speed", "size", "output", "report"):
        assert word in done.stdout
    assert (checkout / "digits.opt.onnx").exists()
    assert (checkout / "digits.opt.report.json").exists()


def test_the_test_command_is_what_ci_runs() -> None:
    install, command = blocks("sh")[1].strip().split(" && ")
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    assert install.replace("pip install", "pip install -q") in ci
    assert command in ci


def test_the_library_example_runs(checkout: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", blocks("python")[0]], cwd=checkout, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"[\d.]+ -?[\d.]+ \(-?[\d.]+, [\d.]+\)\n", done.stdout)


def test_the_pass_example_is_a_pass(tmp_path: Path) -> None:
    file = tmp_path / "drop_softmax.py"
    file.write_text(blocks("python")[1], encoding="utf-8")
    spec = importlib.util.spec_from_file_location("drop_softmax", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["drop_softmax"] = module
    try:
        spec.loader.exec_module(module)
        pass_: Pass = module.DropSoftmax()
        assert pass_.pass_name() == "drop-softmax"
        text = '<ir_version: 8, opset_import: ["" : 17]> g (float[2,3] x) => (float[2,3] y) { y = Softmax(x) }'
        model = ir.from_proto(parser.parse_model(text))
        assert pass_(model).modified
        assert [node.op_type for node in model.graph] == ["Identity"]
    finally:
        del sys.modules["drop_softmax"]


def test_every_command_of_the_table_exists() -> None:
    named = set(re.findall(r"^\| `graphopt (\w+)", README, re.MULTILINE))
    from graphopt import registry

    assert named - {"PASS"} == set(registry.entries("verb"))
