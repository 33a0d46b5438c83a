"""Every verb in the registry explains itself, talks JSON, and fails in one line."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import click
import pytest

import graphopt as package
from graphopt import cli, registry
from graphopt.errors import UserError

VERBS = list(registry.entries("verb"))


@pytest.mark.parametrize("name", VERBS)
def test_help(name, graphopt):
    for flag in ("--help", "-h"):
        ran = graphopt(name, flag)
        assert (ran.code, ran.err) == (0, "")
        assert f"Usage: graphopt {name}" in ran.out


@pytest.mark.parametrize("name", VERBS)
def test_a_verb_is_described(name, graphopt):
    command = registry.find("verb", name)
    assert isinstance(command, click.Command)
    assert command.name == name
    assert 5 < len(registry.entry("verb", name).summary) < 100
    assert registry.entry("verb", name).summary in " ".join(graphopt("--help").out.split())
    assert all(p.help for p in command.params if isinstance(p, click.Option))


@pytest.mark.parametrize("name", VERBS)
def test_results_come_as_json_too(name):
    assert "--json" in {flag for param in registry.find("verb", name).params for flag in param.opts}


@pytest.mark.parametrize("name", VERBS)
def test_an_option_that_does_not_exist_is_wrong_usage(name, graphopt):
    ran = graphopt(name, "--no-such-option")
    assert ran.code == 2
    assert "--no-such-option" in ran.err
    assert not ran.out


@pytest.mark.parametrize("name", [name for name in VERBS if registry.find("verb", name).params[0].required])
def test_a_missing_argument_is_wrong_usage(name, graphopt):
    ran = graphopt(name)
    assert ran.code == 2
    assert "Missing" in ran.err


def test_a_command_that_does_not_exist(graphopt):
    ran = graphopt("optimise", "m.onnx")
    assert ran.code == 2
    assert "no command 'optimise'; did you mean 'optimize'?" in ran.err
    assert not ran.out


def test_no_command_shows_what_there_is(graphopt):
    ran = graphopt()
    assert ran.code == 2
    assert "optimize" in ran.out + ran.err


def test_version(graphopt):
    assert graphopt("--version").out == f"graphopt, version {package.__version__}\n"


def test_python_mirrors_the_verbs():
    for name in package.__all__ * 2:  # the first use imports the module, whose name must not get in the way
        if name == "export" and importlib.util.find_spec("torch") is None:
            with pytest.raises(UserError, match="export needs PyTorch; run pip install"):
                package.export  # noqa: B018
        else:
            assert callable(getattr(package, name)), name
    assert {"apply", "optimize", "validate", "benchmark", "load", "save"} <= set(package.__all__)
    with pytest.raises(AttributeError, match="no attribute 'optimise'"):
        package.optimise  # noqa: B018


@pytest.mark.parametrize("command", [["-m", "graphopt"], ["-c", "from graphopt.cli import main; main()"]])
def test_in_a_process_of_its_own(command, tmp_path):
    """Exit codes and streams as a shell sees them, from a folder without the checkout."""

    def run(*args):
        return subprocess.run([sys.executable, *command, *args], cwd=tmp_path, capture_output=True, text=True)

    listed = run("passes", "--json")
    assert (listed.returncode, listed.stderr) == (0, "")
    missing = run("inspect", "none.onnx")
    assert (missing.returncode, missing.stdout) == (1, "")
    assert missing.stderr == "error: none.onnx: no such file; check the path\n"
    assert run("inspcet", "none.onnx").returncode == 2


def test_a_bug_shows_a_traceback(graphopt, monkeypatch, model_file):
    """Only what the user can fix is one line; everything else must be reported with its origin."""
    from graphopt import inspection

    monkeypatch.setattr(inspection.io, "load", lambda path: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        graphopt("inspect", model_file("g (float[N] x) => (float[N] y) { y = Neg(x) }"))


def test_verbose_logs_to_stderr(graphopt, monkeypatch):
    import logging

    calls = []
    monkeypatch.setattr(logging, "basicConfig", lambda **options: calls.append(options))
    assert graphopt("-v", "passes", "--json").code == 0
    assert calls[0]["level"] == logging.DEBUG
    assert isinstance(cli.cli, click.Group)
