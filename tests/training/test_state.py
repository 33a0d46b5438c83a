"""A training goes on from its own checkpoint only."""

from __future__ import annotations

import pytest

from graphopt import io
from graphopt.training import state
from graphopt.training.loop import fit
from graphopt.training.settings import Settings

TEXT = "g (float[N,3] x) => (float[N,3] y) <float[1] w = {2.0}> { a = Mul(x, w)  y = Softmax<axis = 1>(a) }"


@pytest.mark.parametrize(
    ("before", "after"),
    [("axis = 1", "axis = 0"), ("2.0", "3.0"), ("float[1] w = {2.0}", "float w = {2.0}"), ("Softmax", "LogSoftmax")],
)
def test_what_tells_models_apart(parse, before, after):
    assert state.digest(parse(TEXT)) == state.digest(parse(TEXT))
    assert state.digest(parse(TEXT)) != state.digest(parse(TEXT.replace(before, after)))


def test_a_teacher_that_was_replaced_is_another_training(network, files, tmp_path):
    """Under the same name, with projections of other sizes perhaps."""
    _, train, _, _ = files
    teacher, checkpoint = tmp_path / "teacher.onnx", tmp_path / "c"
    settings = Settings(data=str(train), teacher=str(teacher), epochs=1, checkpoint=str(checkpoint))
    io.save(network(seed=1), teacher)
    assert not fit(network(), settings).resumed
    assert fit(network(), settings).resumed
    io.save(network(seed=2), teacher)
    assert not fit(network(), settings).resumed
