"""Timing: sessions take turns, and a model against itself is as fast as itself."""

from __future__ import annotations

import time

import numpy as np
import pytest

from graphopt import io, latency
from graphopt.errors import UserError
from graphopt.runtime import Session

TEXT = "g (float[N,8] x) => (float[N,8] y) { a = Neg(x) y = Abs(a) }"


class Sleeper(Session):
    def __init__(self, seconds, log=None):
        self.seconds, self.log = seconds, log

    def run(self, feeds, outputs=None):
        if self.log is not None:
            self.log.append(self)
        time.sleep(self.seconds)
        return {}


def test_exactly_as_many_rounds_as_asked():
    times = latency.interleave([Sleeper(0.001), Sleeper(0.002)], {}, seconds=0, rounds=5)
    assert times.shape == (5, 2)
    assert (times > 0).all()


def test_at_least_twenty_rounds_and_at_most_the_time():
    assert len(latency.interleave([Sleeper(0)], {}, seconds=0)) == 20
    start = time.perf_counter()
    assert len(latency.interleave([Sleeper(0.004)], {}, seconds=0.5)) > 20
    assert time.perf_counter() - start < 2


def test_sessions_take_turns_in_alternating_order():
    log = []
    one, two = Sleeper(0.005, log), Sleeper(0.005, log)
    latency.interleave([one, two], {}, seconds=0, rounds=4)
    blocks = [session for session, before in zip(log, [None, *log], strict=False) if session is not before]
    warmup, rounds = [one, two], [one, two, one, two, one]  # neighbours in two rounds look like one block
    assert blocks == warmup + rounds


def test_known_latencies():
    measured = latency.compare_latency(Sleeper(0.004), Sleeper(0.002), {}, 3, seconds=0.3, seed=0)
    assert measured.batch == 3
    assert measured.before_ms >= 4
    assert measured.after_ms >= 2
    assert 1 < measured.ci95[0] <= measured.speedup <= measured.ci95[1]


def test_rows(model_file):
    one, two = model_file(TEXT), model_file(TEXT, "two.onnx")
    rows = latency.benchmark([one, two], batch=[1, 4], runs=3)
    assert [(row.model, row.batch) for row in rows] == [(str(p), b) for b in (1, 4) for p in (one, two)]
    for row in rows:
        assert 0 < row.median_ms <= row.p90_ms
        assert row.per_second == pytest.approx(row.batch / row.median_ms * 1e3)
        assert row.ci95[0] <= row.speedup <= row.ci95[1]
    assert [row.speedup for row in rows[::2]] == [1.0, 1.0]


def test_a_fixed_batch_is_told_as_it_is(model_file):
    (row,) = latency.benchmark([model_file(TEXT.replace("[N,", "[5,"))], batch=[1], runs=2)
    assert row.batch == 5


def test_models_with_other_inputs_are_refused(model_file):
    other = model_file(TEXT.replace("x", "z"), "other.onnx")
    with pytest.raises(UserError, match=r"other\.onnx: does not run on inputs of .*m\.onnx: .*; compare models with"):
        latency.benchmark([model_file(TEXT), other], runs=2)


def test_a_model_that_does_not_load(model_file):
    with pytest.raises(UserError, match=r"m\.onnx: .*NoSuch.*; repair it with"):
        latency.benchmark([model_file(TEXT.replace("Abs", "NoSuch"))], runs=2)


@pytest.mark.parametrize(
    "text",
    [
        "g (float[] x) => (float[] y) { y = GlobalAveragePool(x) }",  # of unknown rank, but must be an image
        "g (float[A,B] x, float[B,C] w) => (float[A,C] y) { y = MatMul(x, w) }",
        "g () => (float[2] y) { y = Constant<value = float[2] {1.0, 2.0}>() }",
        "g (int64[N] i) => (float[N] y) <float[2] k = {1.0, 2.0}> { y = Gather(k, i) }",
        "g (float x) => (float y) { y = Neg(x) }",
    ],
)
def test_inputs_are_found_for_whatever_can_be_verified(model_file, text):
    """What `generate` can feed for verification, `of_batch` must be able to feed for timing."""
    path = model_file(text)
    assert latency.inputs.generate(io.load(path), *sessions(path), 0)
    assert latency.benchmark([path], runs=2)


def sessions(path):
    from graphopt import runtime, target

    return (runtime.open_session(io.load(path), target.find("cpu")),)


def test_inputs_are_seeded(model_file):
    path = model_file(TEXT)
    one, two, other = (latency.inputs.of_batch(io.load(path), *sessions(path), 2, seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one["x"], two["x"])
    assert not np.array_equal(one["x"], other["x"])
