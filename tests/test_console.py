"""What is printed: words as they are, numbers people read, JSON that parsers read."""

from __future__ import annotations

import json

import numpy as np
import pytest

from graphopt import console
from graphopt.errors import did_you_mean
from graphopt.pipeline import Step


def step(**changes):
    fields = {
        "spec": "tidy",
        "status": "kept",
        "reason": "verified",
        "seconds": 0.1,
        "nodes": (3, 2),
        "bytes": (2000, 1000),
    }
    return Step(**{**fields, **changes})


def test_a_table_of_steps(capsys):
    console.print_steps(
        [step(report={"folded": 3, "list": [1], "none": 0}), step(spec="idle", status="skipped", nodes=(2, 2))]
    )
    out = capsys.readouterr().out
    for text in (
        "pass",
        "result",
        "why",
        "tidy",
        "verified: folded 3",
        "3 -> 2",
        "2,000 -> 1,000",
        "0.1",
        "idle",
        "skipped",
    ):
        assert text in out
    assert "list" not in out


def test_names_with_brackets_are_no_markup(capsys):
    """Values of a graph may be called anything; a closing bracket must not end the program."""
    steps = [
        step(spec="tidy{names='[red]'}", status="reverted", reason="output 'y[/x]' is missing, not [bold]here[/bold]"),
        step(skipped=[("node[/x]", "reads [red]")] * 9),
    ]
    console.print_steps(steps)
    out = capsys.readouterr().out
    for text in (
        "tidy{names='[red]'}",
        "'y[/x]'",
        "[bold]here[/bold]",
        "left node[/x] alone: reads [red]",
        "left 3 more alone",
    ):
        assert text in out


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (289_336, "289 kB"),
        (1_090_000, "1.09 MB"),
        (2.5e9, "2.5 GB"),
        (3e12, "3e+03 GB"),
    ],
)
def test_sizes(count, text):
    assert console.size(count) == text


def test_json_that_every_parser_reads(capsys):
    console.print_json(
        {"a": float("inf"), "b": [np.float32(0.5), np.int64(3), float("nan")], 3: (True, None), "c": {"d": "é\n"}}
    )
    out = capsys.readouterr().out
    assert json.loads(out, parse_constant=pytest.fail) == {
        "a": None,
        "b": [0.5, 3, None],
        "3": [True, None],
        "c": {"d": "é\n"},
    }


def test_no_progress_off_a_terminal(capsys):
    with console.progress() as show:
        show(step())
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("word", "known", "hint"),
    [
        ("acuracy", ["accuracy", "mse"], "; did you mean 'accuracy'?"),
        ("zzz", ["b", "a"], "; known: a, b"),
        ("zzz", [], ""),
    ],
)
def test_did_you_mean(word, known, hint):
    assert did_you_mean(word, known) == hint
