"""What stays in float because the outputs do not bear its rounding."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir
import pytest

from graphopt import io, runtime, spec, target
from graphopt.data import open_data
from graphopt.errors import UserError
from graphopt.fidelity import Fidelity
from graphopt.passbase import PreconditionError
from graphopt.passes.quantization import _ranges
from graphopt.passes.quantization._mix_plan import Choice, Planner
from graphopt.passes.quantization._mix_retreat import Retreat
from graphopt.passes.quantization._mix_search import moves
from graphopt.passes.quantization.mix_precision import MixPrecision
from graphopt.pipeline import duplicate
from graphopt.sensitivity import preparing
from graphopt.sensitivity.sources import Source, Sources

CPU = target.find("cpu")
NET = """
    g (float[N,32,24,24] x, float[64,32,3,3] w1, float[64] b1, float[64,64,3,3] w2, float[64] b2,
       float[64,64,1,1] w3, float[64] b3, float[16,64,1,1] w4) => (float[N,16,24,24] y) {
      [first] a = Conv<pads = [1, 1, 1, 1]>(x, w1, b1)
      ra = Relu(a)
      [second] b = Conv<pads = [1, 1, 1, 1]>(ra, w2, b2)
      rb = Relu(b)
      [third] c = Conv(rb, w3, b3)
      rc = Relu(c)
      [last] y = Conv(rc, w4)
    }
"""
ANCHORS = ("first", "second", "third", "last")


def weights(times=1.0):
    """Weights with which one channel between `third` and `last` is so many times as large as the others."""
    rng = np.random.default_rng(0)
    shapes = {"w1": (64, 32, 3, 3), "w2": (64, 64, 3, 3), "w3": (64, 64, 1, 1), "w4": (16, 64, 1, 1)}
    arrays = {name: rng.normal(0, (2 / np.prod(s[1:])) ** 0.5, s).astype(np.float32) for name, s in shapes.items()}
    arrays |= {f"b{i}": rng.normal(0, 0.1, 64).astype(np.float32) for i in (1, 2, 3)}
    arrays["w3"][0] *= times
    arrays["b3"][0] *= times
    arrays["w4"][:, 0] /= times
    return arrays


@pytest.fixture
def fragile(build):
    return build(NET, **weights(2000.0))


@pytest.fixture
def data(sample):
    return sample(x=[24, 32, 24, 24])


def quick(data, **fields):
    return MixPrecision(data, **{"seconds": 0.1, "samples": 12, **fields})


def sqnr(reference, made, data):
    source = open_data(data)
    session = runtime.open_session(reference, CPU)
    ports = runtime.model_inputs(reference)
    return Fidelity(session, source, ports, samples=12, skip=12, batch=12).worst(runtime.open_session(made, CPU))


def integers(model):
    """Return which convolutions read integers."""
    readers = {node.name: node.inputs[1].producer() for node in model.graph if node.op_type == "Conv"}
    return {name for name, maker in readers.items() if maker is not None and maker.op_type == "DequantizeLinear"}


def test_only_what_is_fragile_stays_in_float(fragile, data):
    before = duplicate(fragile)
    result = quick(data)(fragile)
    assert result.modified
    assert {"first", "second"} <= integers(fragile)
    assert not integers(fragile) & {"third", "last"}, "between them is what 256 levels are too few for"
    reasons = dict(result.skipped)
    assert "rounding 'c' alone leaves" in reasons["third"]
    assert "needs 20 dB" in reasons["third"]
    report = result.report
    assert report["everything_quantized"] < 20 <= report["sqnr"]
    assert report["sqnr"] == pytest.approx(sqnr(before, fragile, data), abs=0.02)
    assert report["predicted"] == pytest.approx(report["sqnr"], abs=2)
    assert report["verified_on"] == 12
    assert [part.min_sqnr for part in result.parts] == [30.0, 40.0], "what to try after a rollback"
    assert all(dataclasses.replace(part, min_sqnr=20.0) == quick(data) for part in result.parts)


def test_where_nothing_is_fragile_all_is_quantized(build, data):
    model = build(NET, **weights())
    result = quick(data)(model)
    assert integers(model) == set(ANCHORS)
    assert result.report["in_float"] == 0
    assert result.report["sqnr"] == result.report["everything_quantized"]


def test_a_budget_that_integers_cannot_keep(fragile, data):
    before = io.to_proto(fragile).SerializeToString(deterministic=True)
    with pytest.raises(PreconditionError, match=r"only floats keep 90 dB: .* everything is quantized; alone third "):
        quick(data, min_sqnr=90.0)(fragile)
    assert io.to_proto(fragile).SerializeToString(deterministic=True) == before


def test_what_does_not_pay_stays_in_float(build, sample):
    model = build("g (float[N,4] x, float[4,4] w) => (float[N,4] y) { h = MatMul(x, w) y = Tanh(h) }", w=(4, 4))
    with pytest.raises(PreconditionError, match=r"does not pay|only floats keep"):
        MixPrecision(sample(x=[64, 4]), seconds=0.4, min_sqnr=0.0)(model)
    assert all(node.op_type != "QuantizeLinear" for node in model.graph)


def test_a_metric_is_kept_too(fragile, data):
    """At 0 dB everything may be quantized, were it not for the metric."""
    result = quick(data, min_sqnr=0.0, metric="cosine", max_drop="0.02")(fragile)
    assert 0 <= result.report["drop"] <= 0.02
    assert "third" not in integers(fragile)
    with pytest.raises(UserError, match="has no 'labels' array"):
        spec.build("mix-precision", {"data": data, "metric": "accuracy"}).call(fragile)


def test_ranges_that_are_there_are_used_and_the_choice_is_the_same_twice(build, data):
    made = []
    for _ in range(2):
        model = build(NET, **weights(2000.0))
        spec.build("calibrate", {"data": data, "observers": ("percentile",)})(model)
        quick(data, observer="percentile")(model)
        made.append(io.to_proto(model).SerializeToString(deterministic=True))
    assert made[0] == made[1]


def test_refusals(fragile, data, parse):
    with pytest.raises(PreconditionError, match="no data"):
        MixPrecision()(fragile)
    with pytest.raises(PreconditionError, match="use to-float16 there"):
        MixPrecision(data, target="cuda")(fragile)
    with pytest.raises(ValueError, match="samples is 0"):
        MixPrecision(data, samples=0)
    with pytest.raises(ValueError, match="seconds is 0"):
        MixPrecision(data, seconds=0)
    done = parse("g (float[N,4] x, float s, uint8 z) => (uint8[N,4] y) { y = QuantizeLinear(x, s, z) }")
    with pytest.raises(PreconditionError, match="quantized already: it has QuantizeLinear"):
        MixPrecision(data)(done)


def test_nothing_to_quantize(parse, sample):
    model = parse("g (float[N,4] x) => (float[N,4] y) { y = Exp(x) }")
    with pytest.raises(PreconditionError, match="nothing to quantize"):
        MixPrecision(sample(x=[8, 4]))(model)


@pytest.fixture
def planned(fragile, data):
    """The sources of noise of the net, and a function that makes planners."""
    named = preparing.calibrated(fragile, open_data(data))
    made, _ = preparing.quantized(named, spec.build("quantize-static", {}))
    sources = Sources(named, made)

    def planner(times=None, **fields):
        known = times or dict.fromkeys(ANCHORS, (100.0, 20.0))
        return Planner(named, _ranges.read(named), ("Conv",), known, sources, **{"by_time": False, **fields})

    return list(sources), planner


def test_what_must_be_in_float_to_be_rid_of_a_source(planned):
    sources, planner = planned
    around = {(s.kind, s.name): planner().around(s) for s in sources}
    assert around["weights", "second"] == {"second"}
    assert around["activation", "c"] == {"third", "last"}
    assert around["activation", "x"] == {"first"}
    assert planner().around(Source("activation", "no such value")) == frozenset()


def test_a_choice_tells_what_is_rounded_and_what_it_takes(planned):
    sources, planner = planned
    everything = planner().choose(())
    assert everything.rounded == set(sources)
    assert everything.integers == set(ANCHORS)
    less = planner().choose({"last"})
    assert everything.rounded - less.rounded == {Source("weights", "last"), Source("activation", "y")}
    assert less.us == pytest.approx(everything.us + 80, abs=60)
    nothing = planner().choose(ANCHORS)
    assert nothing == Choice(frozenset(), frozenset(), 400.0)


def test_times_move_what_is_slow_in_integers(planned):
    _, planner = planned
    times = {"first": (900.0, 100.0), "second": (900.0, 100.0), "third": (900.0, 100.0), "last": (100.0, 900.0)}
    assert planner(times, by_time=True).choose(()).integers == {"first", "second", "third"}
    assert planner(times, by_time=True).excluded(()) == {"last"}
    assert planner(times, by_time=False).choose(()).integers == set(ANCHORS)


def test_the_noisiest_for_its_time_goes_first(planned):
    sources, planner = planned
    each = {source: {"y": 1e-6} for source in sources}
    each[Source("weights", "last")] = {"y": 0.05}
    each[Source("weights", "first")] = {"y": 0.04}
    dear = {**dict.fromkeys(ANCHORS, (100.0, 20.0)), "last": (900.0, 20.0)}
    for times, order in ((None, ["last", "first"]), (dear, ["first", "last"])):
        taken = [move.source.name for move in moves(planner(times), each, 20.0, ["y"])]
        assert taken[:2] == order


@dataclasses.dataclass(frozen=True)
class Tried:
    fits: bool


class Trial:
    """Fits when enough nodes are in float."""

    def __init__(self, enough):
        self.enough, self.made = enough, []

    def make(self, placement):
        self.made.append(len(placement.floats))
        return Tried(len(placement.floats) >= self.enough)


class Line(Planner):
    """A hundred nodes in a row, each with a source of its own."""

    def __init__(self):
        pass

    def around(self, source):
        return frozenset({source.name})

    def choose(self, floats):
        left = frozenset(str(i) for i in range(100)) - frozenset(floats)
        return Choice(frozenset(Source("weights", name) for name in left), left, 0.0)

    def excluded(self, floats):
        return frozenset(floats)


@pytest.mark.parametrize("enough", [0, 1, 17, 40, 41, 42, 60, 99])
def test_few_models_tell_how_many_must_go(enough):
    """The prediction says 41; whatever is true is found in a few attempts."""
    each = {Source("weights", str(i)): {"y": 1 / 5900} for i in range(100)}
    trial = Trial(enough)
    taken = Retreat(Line(), trial, each, 20.0, ["y"]).shortest()
    assert taken is not None
    assert len(taken) == enough
    assert len(set(trial.made)) <= 14
    assert abs(trial.made[0] - 41) <= 1


def test_only_floats_will_do():
    each = {Source("weights", str(i)): {"y": 1 / 5900} for i in range(100)}
    assert Retreat(Line(), Trial(101), each, 20.0, ["y"]).shortest() is None


def bits(model):
    """Return in what convolutions keep their weights, by name."""
    found = {}
    for node in model.graph:
        if node.op_type == "Conv" and (maker := node.inputs[1].producer()) is not None:
            held = maker.inputs[0]
            while held.producer() is not None:  # the Cast of narrow integers
                held = held.producer().inputs[0]
            found[node.name] = held.dtype
    return found


@pytest.mark.parametrize(("least", "narrow"), [(10.0, set(ANCHORS)), (30.0, {"second"})])
def test_weights_in_4_bits_where_the_outputs_bear_it(build, data, least, narrow):
    """One layer's weights are multiples of a sixteenth of their range: 4 bits are enough for these."""
    arrays = weights()
    arrays["w2"] = np.clip(np.rint(arrays["w2"] / 0.03), -7, 7) * np.float32(0.03)
    arrays["w2"][:, 0, 0, 0] = 7 * np.float32(0.03)
    model = build(NET, **arrays)
    before = duplicate(model)
    report = quick(data, weights="mixed", min_sqnr=least)(model).report
    assert {name for name, dtype in bits(model).items() if dtype == ir.DataType.INT4} == narrow
    assert report["int4"] == len(narrow)
    assert report["sqnr"] >= least
    assert report["sqnr"] == pytest.approx(sqnr(before, model, data), abs=0.02)


def test_activations_in_16_bits_where_they_are_fragile(fragile, data, monkeypatch):
    """ONNX Runtime computes them in floats, with conversions; where that is slower than the model was, floats stay."""
    monkeypatch.setattr("graphopt.passes.quantization._race.pays", lambda latency: True)
    monkeypatch.setattr("graphopt.passes.quantization.mix_precision.pays", lambda latency: True)
    report = quick(data, int16=True)(fragile).report
    assert report["int16"] > 0
    assert report["sqnr"] >= 20
    assert {"first", "second", "third"} <= integers(fragile), "`last` may be slower in integers"
    assert any(value.dtype == ir.DataType.UINT16 for value in fragile.graph.initializers.values())
