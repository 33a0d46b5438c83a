"""The base classes of passes: names, contracts, composition with onnx_ir, local rewrites."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir
import pytest
from onnx_ir.passes import Sequential
from onnx_ir.passes.common import RemoveUnusedNodesPass

from graphopt import runtime, target
from graphopt.passbase import EXACT, LOSSY, Contract, Pass, Result, Rewrite, param


@dataclasses.dataclass(frozen=True)
class DoubleNeg(Rewrite):
    """-(-x) = x."""

    but_not: str = param("", "name of an input to leave alone")

    def patterns(self):
        return [lambda op, x: op.Neg(op.Neg(x))]

    def check(self, context, x, **_):
        return f"'{x.name}' is to be left alone" if x.name == self.but_not else None

    def rewrite(self, op, x, **_):
        return op.Identity(x)


TEXT = """<ir_version: 9, opset_import: ["": 18, "local": 1]>
g (float[N] x, float[N] w, bool c) => (float[N] y) {
    a = Neg(x)
    b = Neg(a)
    d = Neg(w)
    [keep] e = Neg(d)
    f = local.twice(b)
    h = If(c) <then_branch = t () => (float[N] p) { n = Neg(f)  p = Neg(n) },
               else_branch = el () => (float[N] q) { q = Identity(f) }>
    y = Add(h, e)
}
<domain: "local", opset_import: ["": 18]>
twice (i) => (o) { j = Neg(i)  o = Neg(j) }
"""


def types(graph):
    return [node.op_type for node in graph.all_nodes()]


def run(model):
    feeds = {"x": np.array([1, -2], np.float32), "w": np.array([3, 4], np.float32), "c": np.array(True)}
    return runtime.open_session(model, target.find("cpu")).run(feeds)["y"].tolist()


def test_a_rewrite_reaches_subgraphs_and_functions(parse):
    model = parse(TEXT)
    result = DoubleNeg()(model)
    assert result.modified
    assert result.report == {"rewritten": 4}
    assert result.skipped == []
    assert "Neg" not in types(model.graph)
    assert all("Neg" not in types(function) for function in model.functions.values())
    assert run(model) == run(parse(TEXT)) == [4, 2]


def test_a_refusal_carries_its_reason(parse):
    model = parse(TEXT)
    result = DoubleNeg(but_not="w")(model)
    assert result.report == {"rewritten": 3}
    assert result.skipped == [("keep", "'w' is to be left alone")]
    assert types(model.graph).count("Neg") == 2


def test_a_rewrite_that_finds_nothing_says_so(parse):
    model = parse("g (float[N] x) => (float[N] y) { y = Neg(x) }")
    result = DoubleNeg()(model)
    assert not result.modified
    assert types(model.graph) == ["Neg"]


def test_passes_compose_with_those_of_onnx_ir(parse):
    result = Sequential(DoubleNeg(), RemoveUnusedNodesPass())(parse(TEXT))
    assert result.modified
    assert run(result.model) == [4, 2]


def test_the_name_is_the_files():
    assert DoubleNeg.pass_name() == "test-passbase"


def test_passes_are_frozen_values():
    assert DoubleNeg() == DoubleNeg("")
    assert DoubleNeg("a") != DoubleNeg("b")
    with pytest.raises(dataclasses.FrozenInstanceError):
        DoubleNeg().but_not = "x"


def test_contracts():
    assert Contract("exact") == EXACT
    assert (EXACT.kind, LOSSY.kind) == ("exact", "lossy")
    assert 0 < EXACT.rtol <= 1e-4, "tolerances are tight by default"
    assert Pass.contract is EXACT
    with pytest.raises(dataclasses.FrozenInstanceError):
        EXACT.rtol = 1.0


def test_a_result_is_one_of_onnx_ir(parse):
    result = Result(parse(TEXT), True)
    assert isinstance(result, ir.passes.PassResult)
    assert (result.report, result.skipped) == ({}, [])


@pytest.mark.parametrize(("field", "default", "value"), [("seed", 0, 7), ("target", "cpu", "reference")])
def test_a_field_called_like_an_option_of_the_command(drop_pass, model_file, tmp_path, graphopt, field, default, value):
    """The generated command has one option of that name, which the pass gets, too."""
    drop_pass(
        "tagged",
        f"""
        @dataclass(frozen=True)
        class Tagged(Pass):
            {field}: {type(value).__name__} = param({default!r}, "a field with a name that is also an option")

            def call(self, model):
                model.metadata_props["tag"] = str(self.{field})
                return Result(model, True)
        """,
    )
    path = model_file("g (float[N] x) => (float[N] y) { y = Neg(x) }")
    for number, command in enumerate(
        (["apply", path, f"tagged{{{field}={value}}}"], ["tagged", path, f"--{field}", value])
    ):
        out = tmp_path / f"out{number}.onnx"
        ran = graphopt(*command, "-o", out)
        assert (ran.code, ran.err) == (0, "")
        assert ir.load(out).metadata_props["tag"] == str(value)
