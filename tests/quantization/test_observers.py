"""Histograms, and the ranges that observers find in them."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from graphopt import io
from graphopt.errors import UserError
from graphopt.passbase import PreconditionError
from graphopt.passes.quantization import _grid, _ranges
from graphopt.passes.quantization._histogram import Histogram
from graphopt.passes.quantization._observers import OBSERVERS, Observer, least_divergence, least_error
from graphopt.passes.quantization.calibrate import Calibrate
from graphopt.passes.quantization.quantize_static import QuantizeStatic

FINITE = st.floats(-(2.0**99), 2.0**99, width=32)


def histogram(array):
    made = Histogram()
    made.add(array)
    return made


def masses(array):
    return histogram(array).masses(float(array.min()), float(array.max()))


@given(arrays.arrays(np.float32, st.integers(1, 200), elements=FINITE))
@settings(deadline=None, max_examples=50)
def test_every_element_lies_in_its_bucket(array):
    found = masses(array)
    assert found.counts.sum() == array.size
    assert (np.diff(found.starts) >= 0).all()
    edges = np.append(found.starts, np.inf)
    counted = np.diff(np.searchsorted(np.sort(array.astype(np.float64)), edges))
    exact = found.starts > 0  # negative buckets hold their upper end, and zeros have two signs
    assert (counted[exact] == found.counts[exact]).all()


@pytest.mark.parametrize("shape", [(3,), (7, 11), (70_000,)])
def test_parts_add_up(shape):
    array = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    whole, parts = histogram(array), Histogram()
    for part in np.array_split(array.reshape(-1)[::-1], 3):
        parts.add(part)
    one, two = whole.masses(-9, 9), parts.masses(-9, 9)
    assert (one.counts == two.counts).all()
    assert (one.starts == two.starts).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, -np.nan])
def test_what_is_no_number_shows(bad):
    assert not histogram(np.array([1, bad], np.float32)).is_finite
    assert histogram(np.array([1, -2], np.float32)).is_finite
    assert not Histogram().is_finite


def test_quantiles_are_within_a_bucket():
    array = np.random.default_rng(0).normal(size=100_000).astype(np.float32)
    for share in (0.001, 0.3, 0.99, 0.9999, 1.0):
        assert masses(array).quantile(share) == pytest.approx(np.quantile(array, share), rel=0.01)


def error(array, lo, hi, steps=255):
    grid = _grid.grid(lo, hi)
    if steps != 255:
        scale = (hi - lo) / steps
        zero = round(-lo / scale)
        integers = np.clip(np.rint(array / scale) + zero, 0, steps)
        return float(np.mean((array - (integers - zero) * scale) ** 2))
    return float(np.mean((array - (grid.quantize(array).astype(np.float64) - grid.zero_point) * grid.scale) ** 2))


def draws():
    rng = np.random.default_rng(3)
    spiky = rng.normal(size=50_000)
    spiky[:20] *= 30
    yield from (
        rng.normal(size=50_000),
        np.maximum(rng.normal(size=50_000), 0),
        spiky,
        rng.exponential(size=50_000) - 0.2,
        -np.abs(spiky),
    )


@pytest.mark.parametrize("array", list(draws()), ids=["normal", "relu", "outliers", "skewed", "negative"])
@pytest.mark.parametrize("bits", [4, 8])
def test_mse_is_as_good_as_brute_force(array, bits):
    array = array.astype(np.float32)
    steps = 2**bits - 1
    low, high = min(array.min(), 0), max(array.max(), 0)
    best = min(
        error(array, low * a, high * b, steps)
        for a in np.linspace(1, 0.05, 20)
        for b in np.linspace(1, 0.05, 20)
        if high * b > low * a
    )
    assert error(array, *least_error(masses(array), steps), steps) <= best * 1.05


def test_entropy_leaves_outliers_out():
    array = np.random.default_rng(0).normal(size=200_000).astype(np.float32)
    array[0] = 100
    lo, hi = least_divergence(masses(array), 256)
    assert hi < 50
    lo, hi = least_divergence(masses(array[1:]), 256)
    assert hi > 2.5, "but not the tails"


def test_averages_move():
    seen = Observer()
    for high in (1.0, 1.0, 11.0):
        seen.add(np.array([0, high], np.float32))
    found = seen.ranges(OBSERVERS, 100.0, 8)
    assert found["moving-average"] == (0, pytest.approx(2))
    assert found["min-max"] == (0, 11)


@given(arrays.arrays(np.float32, st.integers(1, 60), elements=FINITE))
@settings(deadline=None, max_examples=30)
def test_no_range_leaves_the_extremes(array):
    seen = Observer()
    seen.add(array)
    for lo, hi in seen.ranges(OBSERVERS, 99.0, 8).values():
        assert array.min() <= lo <= array.max()
        assert array.min() <= hi <= array.max()


@pytest.fixture
def net(build):
    return build(
        "g (float[N,8] x, float[8,8] w1, float[8,4] w2) => (float[N,4] y) { a = MatMul(x, w1) r = Relu(a) y = MatMul(r, w2) }",
        w1=(8, 8),
        w2=(8, 4),
    )


def test_all_observers_at_once(net, sample):
    Calibrate(sample(x=[64, 8]), observers=OBSERVERS, batch=16)(net)
    assert _ranges.observers(net) == list(OBSERVERS)
    exact = {name: _ranges.read(net) for name in ("min-max",)}["min-max"]
    again = net.clone()
    Calibrate(sample(x=[64, 8]), batch=16)(again)
    assert exact == _ranges.read(again), "extremes are exact either way"


def test_batches_do_not_matter(net, sample):
    found = []
    for batch in (64, 7):
        Calibrate(sample(x=[64, 8]), observers=("mse", "percentile"), batch=batch)(net)
        found.append((_ranges.read(net, "mse"), _ranges.read(net, "percentile")))
    assert found[0][0].keys() == found[1][0].keys()
    for one, two in zip(found[0], found[1], strict=True):
        for name in one:
            assert one[name] == pytest.approx(two[name], rel=0.02, abs=0.02)


def test_an_observer_that_was_not_asked_for(net, sample):
    Calibrate(sample(x=[64, 8]))(net)
    with pytest.raises(PreconditionError, match="no ranges by mse, but by min-max"):
        QuantizeStatic(observer="mse")(net)


def test_ranges_can_be_edited(net, sample, tmp_path):
    file = tmp_path / "ranges.json"
    Calibrate(sample(x=[64, 8]), observers=("min-max", "mse"), save=str(file))(net)
    document = json.loads(file.read_text())
    assert document["samples"] == 64
    assert document["activations"].keys() == _ranges.read(net).keys()
    document["activations"]["r"] = {"min-max": [0, 1.5]}
    file.write_text(json.dumps(document))
    result = Calibrate(ranges=str(file))(net)
    assert result.report == {"ranges": len(document["activations"])}
    assert _ranges.read(net)["r"] == (0, 1.5)
    assert "r" not in _ranges.read(net, "mse")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ("[]", "holds no ranges"),
        ('{"activations": {"q": {"min-max": [0, 1]}}}', "no activation 'q'"),
        ('{"activations": {"r": {"min-max": [2, 1]}}}', "begins at 2, above its end 1; swap them"),
        ('{"activations": {"r": {"min-max": [0, Infinity]}}}', "two finite numbers"),
        ('{"activations": {"r": {"min-max": [true, 1]}}}', "two finite numbers"),
        ('{"activations": {"r": [0, 1]}}', "must be an object"),
    ],
)
def test_bad_files_of_ranges(net, tmp_path, graphopt, text, message):
    (tmp_path / "ranges.json").write_text(text)
    io.save(net, tmp_path / "m.onnx")
    done = graphopt("calibrate", tmp_path / "m.onnx", "-o", tmp_path / "o.onnx", "--ranges", tmp_path / "ranges.json")
    assert done.code == 1
    assert message in done.err
    assert done.err.count("\n") == 1
    assert not (tmp_path / "o.onnx").exists()


def test_a_missing_file_of_ranges(net, tmp_path):
    with pytest.raises(UserError, match="cannot read the ranges"):
        Calibrate(ranges=str(tmp_path / "no.json"))(net)
