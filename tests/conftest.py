"""Fixtures: model files from ONNX text, the command line in process, and passes dropped into the registry."""

from __future__ import annotations

import dataclasses
import json
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import onnx
import onnx.parser
import onnx_ir as ir
import pytest

import graphopt.passes
from graphopt import cli, registry

HEADER = '<ir_version: 9, opset_import: ["": 18]>\n'


def proto(text: str) -> onnx.ModelProto:
    """Parse a model in ONNX text; a bare graph gets opset 18."""
    text = text.strip()
    return onnx.parser.parse_model(text if text.startswith("<") else HEADER + text)


@dataclasses.dataclass(frozen=True)
class Ran:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Everything on stdout as one JSON value."""
        return json.loads(self.out)

    @property
    def error(self) -> str:
        """The one line on stderr that explains a failure; anything else there is a failure of its own."""
        lines = self.err.splitlines()
        assert len(lines) == 1, self.err
        assert lines[0].startswith("error: "), self.err
        assert not self.out, "a failed command prints no result"
        return lines[0].removeprefix("error: ")


@pytest.fixture(scope="session")
def parse() -> Callable[[str], ir.Model]:
    """Make a model of ONNX text."""
    return lambda text: ir.from_proto(proto(text))


@pytest.fixture
def model_file(tmp_path: Path) -> Callable[..., Path]:
    """Write a model given as ONNX text."""

    def write(text: str, name: str = "m.onnx") -> Path:
        onnx.save_model(proto(text), tmp_path / name)
        return tmp_path / name

    return write


@pytest.fixture(name="graphopt")
def command_line(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """Run the command line in this process; stdout and stderr are captured down to the file descriptors."""

    def run(*args: object) -> Ran:
        monkeypatch.setattr(sys, "argv", ["graphopt", *map(str, args)])
        capfd.readouterr()
        try:
            cli.main()
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
        return Ran(code, *capfd.readouterr())

    return run


class Dropbox:
    """A family folder of passes that exists only during a test, found like the folders in `passes/`."""

    def __init__(self, root: Path) -> None:
        self.family = root / "dropped"
        self.family.mkdir()

    def __call__(self, name: str, source: str) -> str:
        """Drop a file with a pass; what every pass imports is imported already."""
        head = "from __future__ import annotations\nfrom dataclasses import dataclass\nfrom typing import Literal\n"
        core = (
            "import onnx_ir as ir\nfrom graphopt.errors import UserError\n"
            "from graphopt.passbase import LOSSY, Contract, Pass, PreconditionError, Result, param\n"
        )
        text = f'"""A pass called {name}."""\n{head}{core}{textwrap.dedent(source)}'
        (self.family / f"{name.replace('-', '_')}.py").write_text(text, encoding="utf-8")
        registry.entries.cache_clear()
        return name


def dropbox(root: Path) -> Iterator[Dropbox]:
    """Extend the package graphopt.passes by a folder, and take it away again."""
    graphopt.passes.__path__.append(str(root))
    yield Dropbox(root)
    graphopt.passes.__path__.remove(str(root))
    for module in [name for name in sys.modules if name.startswith("graphopt.passes.dropped")]:
        del sys.modules[module]
    vars(graphopt.passes).pop("dropped", None)
    registry.entries.cache_clear()


@pytest.fixture
def drop_pass(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dropbox]:
    """Drop files with passes into the registry: `drop_pass("name", source)`."""
    yield from dropbox(tmp_path_factory.mktemp("passes"))


@pytest.fixture(scope="module")
def module_drop_pass(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dropbox]:
    """Drop passes for a whole module of tests."""
    yield from dropbox(tmp_path_factory.mktemp("passes"))


@pytest.fixture(scope="session")
def digits() -> Path:
    """The folder of the trained sample: digits.onnx, calibration.npz, test.npz."""
    return Path(__file__).parents[1] / "models" / "digits"
