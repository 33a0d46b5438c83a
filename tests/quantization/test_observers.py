"""Histograms, and the ranges that observers find in them, against brute force."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from graphopt.passes.quantization._histogram import Histogram
from graphopt.passes.quantization._least_divergence import least_divergence
from graphopt.passes.quantization._least_error import expected_error, least_error
from graphopt.passes.quantization._observers import Observer
from graphopt.passes.quantization._ranges import OBSERVERS

FINITE = st.floats(-(2.0**99), 2.0**99, width=32)


def masses(array):
    made = Histogram()
    return made.masses(*made.add(array))


def draw(kind, size=50_000):
    rng = np.random.default_rng(3)
    array = rng.normal(size=size)
    if kind == "relu":
        array = np.maximum(array, 0)
    elif kind == "outliers":
        array[:20] *= 30
    elif kind == "skewed":
        array = rng.exponential(size=size) - 0.2
    elif kind == "negative":
        array = -np.abs(array)
    elif kind == "heavy tails":
        array = rng.standard_t(3, size=size)
    elif kind == "probabilities":
        array = np.exp(3 * array - 8)
    elif kind == "integers":
        array = rng.integers(-3, 9, size)
    return array.astype(np.float32)


KINDS = ["normal", "relu", "outliers", "skewed", "negative", "heavy tails", "probabilities", "integers"]


@given(arrays.arrays(np.float32, st.integers(1, 200), elements=FINITE))
@settings(deadline=None, max_examples=60)
def test_every_element_lies_in_its_bucket(array):
    found = masses(array)
    assert found.counts.sum() == array.size
    assert (np.diff(found.starts) >= 0).all()
    assert (found.starts <= found.ends).all()
    assert (found.starts[0], found.ends[-1]) == pytest.approx((array.min(), array.max()), abs=1e-39)
    for start, end, count in zip(found.starts, found.ends, found.counts, strict=True):
        inside = (array >= start - 1e-39) & (array <= end + 1e-39)  # what is below 2^-133 counts as zero
        assert inside.sum() >= count
        assert start <= end <= start + max(abs(start), abs(end)) / 128 + 1e-39


@given(arrays.arrays(np.float32, st.integers(2, 200), elements=FINITE), st.randoms())
@settings(deadline=None, max_examples=30)
def test_parts_add_up_in_any_order(array, random):
    cuts = sorted(random.sample(range(1, array.size), min(3, array.size - 1)))
    parts = np.split(array, cuts)
    random.shuffle(parts)
    seen = Histogram()
    for part in parts:
        seen.add(part)
    one, two = masses(array), seen.masses(float(array.min()), float(array.max()))
    for field in ("starts", "ends", "counts"):
        assert (getattr(one, field) == getattr(two, field)).all()


def test_long_arrays_are_counted_whole():
    array = np.random.default_rng(0).normal(size=(3, 100_001)).astype(np.float32)
    assert masses(array).counts.sum() == array.size
    assert masses(array.T).counts.sum() == array.size, "in any layout"


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, -np.nan])
def test_what_is_no_number_shows(bad):
    seen = Histogram()
    assert not seen.is_finite
    seen.add(np.array([1, -2], np.float32))
    assert seen.is_finite
    seen.add(np.array([1, bad], np.float32))
    assert not seen.is_finite


@pytest.mark.parametrize("kind", KINDS)
def test_quantiles_are_within_a_bucket(kind):
    array = draw(kind)
    for share in (0.0, 0.001, 0.3, 0.99, 0.9999, 1.0):
        true = np.quantile(array, share, method="inverted_cdf")
        assert masses(array).quantile(share) == pytest.approx(true, rel=1 / 128, abs=1e-6)


@pytest.mark.parametrize("kind", ["normal", "relu", "skewed", "probabilities"])
def test_counts_below(kind):
    array = np.sort(draw(kind))
    at = np.linspace(array[0] - 1, array[-1] + 1, 300)
    true = np.searchsorted(array, at)
    np.testing.assert_allclose(masses(array).below(at), true, atol=0.004 * array.size)
    assert masses(array).below(np.array([-1e30, 1e30])).tolist() == [0, array.size]


def squared_error(array, lo, hi, levels):
    """What an asymmetric grid of integers makes of it, summed."""
    step = (hi - lo) / levels
    zero = np.rint(-lo / step)
    integers = np.clip(np.rint(array.astype(np.float64) / step) + zero, 0, levels)
    return float(np.sum((array - (integers - zero) * step) ** 2))


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "integers"])
def test_the_expected_error_is_the_error(kind, bits):
    array, levels = draw(kind), 2**bits - 1
    reach = max(-float(array.min()), float(array.max()))
    for step, zero in ((2 * reach / levels, levels // 2), (reach / 2 / levels, 0), (reach / levels, levels)):
        true = squared_error(array, -zero * step, (levels - zero) * step, levels)
        found = expected_error(masses(array), np.array([step]), np.array([zero]), levels)
        assert found == pytest.approx(true, rel=0.02)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bits", [4, 8])
def test_mse_is_as_good_as_brute_force(kind, bits):
    array, levels = draw(kind, 20_000), 2**bits - 1
    low, high = min(float(array.min()), 0.0), max(float(array.max()), 0.0)
    parts = np.append(np.geomspace(1, 0.02, 18), 0)
    best = min(squared_error(array, low * a, high * b, levels) for a in parts for b in parts if high * b > low * a)
    lo, hi = least_error(masses(array), bits)
    assert lo <= 0 <= hi
    allowed = best * 1.01 + array.size * (0.004 if kind == "integers" else 0)  # whose buckets are spread
    assert squared_error(array, lo, hi, levels) <= allowed


def test_sixteen_bits_clip_nothing_of_a_bell():
    array = draw("normal")
    lo, hi = least_error(masses(array), 16)
    assert (lo, hi) == pytest.approx((array.min(), array.max()), rel=0.02)


@pytest.mark.parametrize("search", [least_error, least_divergence])
@pytest.mark.parametrize("array", [[0, 0, 0], [3], [-3], [1e-42, -1e-42], [5, 5, 0], [-3.4e38, 3.4e38], [1e-30, 2e-30]])
def test_odd_distributions_have_ranges(search, array):
    array = np.array(array, np.float32)
    lo, hi = search(masses(array), 8)
    assert lo <= 0 <= hi
    if np.abs(array).max() > 1e-40:
        assert hi - lo >= 0.5 * (max(float(array.max()), 0) - min(float(array.min()), 0))


@pytest.mark.parametrize("bits", [4, 8])
def test_entropy_leaves_outliers_out_but_not_the_tails(bits):
    array = draw("normal", 200_000)
    array[0] = 100
    lo, hi = least_divergence(masses(array), bits)
    assert 2.5 < hi < 20
    assert -20 < lo < -2.5


def test_entropy_treats_both_ends_on_their_own():
    array = draw("skewed", 200_000)
    array[0] = 1000
    lo, hi = least_divergence(masses(array), 8)
    assert -0.2001 <= lo <= -0.15
    assert 5 < hi < 100


def test_entropy_does_not_mind_zeros():
    array = np.abs(draw("normal"))
    with_zeros = np.concatenate([array, np.zeros(10 * array.size, np.float32)])
    assert least_divergence(masses(with_zeros), 8) == least_divergence(masses(array), 8)


def seen(arrays_, batch=64, samples=64):
    made = Observer(batch)
    for array in arrays_:
        made.add(np.asarray(array, np.float32), samples)
    return made


def test_the_average_is_of_batches_however_they_are_cut():
    rows = np.array([[0, 1.0], [0, 2.0], [-3, 11.0], [0, 4.0], [0, 5.0]], np.float32)
    whole = Observer(2)
    for start in (0, 2, 4):
        whole.add(rows[start : start + 2], len(rows[start : start + 2]))
    single = seen(rows, batch=2, samples=1)
    expected = (2 * 0 + 2 * -3 + 0) / 5, (2 * 2 + 2 * 11 + 5) / 5
    for found in (whole, single):
        assert found.ranges(["moving-average"])["moving-average"] == pytest.approx(expected)
        assert found.ranges(["min-max"])["min-max"] == (-3, 11)


@given(arrays.arrays(np.float32, st.integers(1, 60), elements=FINITE))
@settings(deadline=None, max_examples=30)
def test_no_range_leaves_the_extremes(array):
    for lo, hi in seen([array]).ranges(OBSERVERS, 99.0).values():
        assert array.min() <= lo <= array.max()
        assert array.min() <= hi <= array.max()
        assert lo <= hi


@pytest.mark.parametrize("name", OBSERVERS)
def test_the_order_does_not_matter(name):
    parts = np.split(draw("outliers"), 10)
    ranges = [seen(p, samples=64).ranges(OBSERVERS)[name] for p in (parts, parts[::-1])]
    assert ranges[0] == ranges[1]


def test_a_run_without_elements_is_passed_over():
    found = seen([np.zeros((0, 3)), [1, 2], np.zeros(0)])
    assert not found.is_empty
    assert found.ranges(["moving-average"]) == {"moving-average": (1, 2)}
    assert seen([np.zeros(0)]).is_empty


def test_extremes_that_are_no_numbers():
    for low, high in ((np.nan, np.nan), (0, np.inf), (-np.inf, 0)):
        found = Observer(4)
        found.widen(0, 1, 4)
        assert found.is_finite
        found.widen(low, high, 4)
        assert not found.is_finite
