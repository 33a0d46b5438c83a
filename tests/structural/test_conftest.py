"""The check that every test here leans on must be able to fail."""

import dataclasses

import numpy as np
import onnx_ir as ir
import pytest

from graphopt.passbase import Pass, Result

GRAPH = """
g (float[2] x) => (float[2] y, float[2] z) <float[2] w = {1, 2}> {
    y = Mul(x, w)
    z = Neg(y)
}
"""


@dataclasses.dataclass(frozen=True)
class Vandal(Pass):
    """Does one kind of damage, once."""

    kind: str
    modified: bool = True

    def call(self, model):
        graph = model.graph
        if "done" in model.meta:
            return Result(model, False)
        model.meta["done"] = True
        if self.kind == "scale":
            graph.initializers["w"].const_value = ir.tensor(np.float32([1.001, 2.002]))
        elif self.kind == "rewire":
            graph.node(1).replace_input_with(0, graph.inputs[0])
        elif self.kind == "drop":
            graph.outputs.pop()
        elif self.kind == "rename":
            graph.outputs[1].name = "q"
        elif self.kind == "never done":
            graph.doc_string = (graph.doc_string or "") + "x"
            del model.meta["done"]
        elif self.kind == "harmless":
            graph.doc_string = "x"
        return Result(model, self.modified)


@pytest.mark.parametrize("kind", ["scale", "rewire", "drop", "rename", "never done"])
def test_damage_is_noticed(apply, kind):
    with pytest.raises(AssertionError):
        apply(Vandal(kind), GRAPH)


@pytest.mark.parametrize(("kind", "modified"), [("harmless", False), ("nothing", True)])
def test_an_untruthful_modified_is_noticed(apply, kind, modified):
    with pytest.raises(AssertionError):
        apply(Vandal(kind, modified), GRAPH)


def test_a_harmless_change_passes(apply):
    assert apply(Vandal("harmless"), GRAPH).modified
