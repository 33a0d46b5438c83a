"""Factors between channels change weights, and no result."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt import compare, runtime, target
from graphopt.passes.quantization._equalize_balance import Balance, apply
from graphopt.passes.quantization._equalize_rules import analyse
from graphopt.passes.quantization._equalize_variables import Variables
from graphopt.passes.quantization.equalize import Equalize
from graphopt.pipeline import duplicate

CPU = target.find("cpu{threads=1 level=none}")
"""Runs the graph as it is: fusions of ONNX Runtime round otherwise where a constant changes its shape."""

UNEVEN = 2.0 ** np.array([0, 6, -5, 3])
"""Factors that leave one scale for all channels with no bits for some of them."""


def weights(*shape, axis=0):
    """Random weights whose channels along an axis differ by `UNEVEN`."""
    array = np.random.default_rng(2).normal(0, 0.3, shape)
    return (array * UNEVEN.reshape([4 if a == axis else 1 for a in range(len(shape))])).astype(np.float32)


def run(model, feeds):
    return runtime.open_session(model, CPU).run(feeds)


def check(model, feeds, **fields):
    """Equalize: outputs stay the same to the last bit, the result says what happened, and there is nothing left to do."""
    reference, before = run(model, feeds), {name: v.const_value for name, v in model.graph.initializers.items()}
    result = Equalize(**fields)(model)
    changed = {name: v.const_value for name, v in model.graph.initializers.items()} != before
    assert result.modified == changed == bool(result.report["channels"])
    for name, array in run(model, feeds).items():
        np.testing.assert_array_equal(array, reference[name])
    again = Equalize(**fields)(duplicate(model))
    assert not again.modified, again.report
    return result


def scramble(model, seed=0):
    """Multiply every free exponent by a random power of two; return how many there are."""
    channels = analyse(model)
    balance = Balance(channels, [], channels.layers, 1)
    exponents = balance.zero()
    exponents[1:] = np.random.default_rng(seed).integers(1, 5, len(exponents) - 1)
    apply(channels, balance, exponents, model)
    return len(exponents) - 1


# What lets factors through: the body between two layers, y of x, and how many factors are free there.

SPATIAL = {
    "Relu": ("y = Relu(x)", 4),
    "LeakyRelu": ("y = LeakyRelu<alpha = 0.2>(x)", 4),
    "PRelu": ("y = PRelu(x, slope)", 4),
    "Abs and Neg": ("a = Abs(x)  y = Neg(a)", 4),
    "Identity and Dropout": ("a = Identity(x)  y = Dropout(a)", 4),
    "Dropout that is off": ("y = Dropout(x, ratio, off)", 4),
    "Clip at zero": ("y = Clip(x, zero)", 4),
    "Clip from above at zero": ("y = Clip(x, , zero)", 4),
    "Clip without bounds": ("y = Clip(x)", 4),
    "Max with a constant": ("y = Max(x, zero)", 4),
    "Min with a constant": ("a = Relu(x)  y = Min(a, six)", 4),
    "MaxPool": ("y = MaxPool<kernel_shape = [2,2], pads = [1,1,1,1]>(x)", 4),
    "AveragePool": ("y = AveragePool<kernel_shape = [2,2]>(x)", 4),
    "GlobalAveragePool": ("y = GlobalAveragePool(x)", 4),
    "GlobalMaxPool": ("y = GlobalMaxPool(x)", 4),
    "ReduceMean": ("y = ReduceMean(x, spatial)", 4),
    "ReduceMax, axes dropped and put back": ("a = ReduceMax<keepdims = 0>(x, spatial)  y = Unsqueeze(a, spatial)", 4),
    "ReduceSum over channels": ("a = ReduceSum(x, channel)  y = Concat<axis = 1>(a, a, a, a)", 1),
    "Pad with zeros": ("y = Pad(x, pads)", 4),
    "Pad by reflection": ('y = Pad<mode = "reflect">(x, pads)', 4),
    "Resize": ('y = Resize<mode = "linear">(x, , scales)', 4),
    "Resize to sizes": ('y = Resize(x, , , sizes)', 4),
    "Transpose and back": ("a = Transpose<perm = [0,2,3,1]>(x)  y = Transpose<perm = [0,3,1,2]>(a)", 4),
    "Reshape and back": ("a = Reshape(x, flat)  y = Reshape(a, image)", 4),
    "Reshape that splits channels": ("a = Reshape(x, split)  b = Relu(a)  y = Reshape(b, image)", 4),
    "Concat of halves": ("a, b = Split<axis = 1, num_outputs = 2>(x)  y = Concat<axis = 1>(b, a)", 4),
    "Concat along another axis": ("a = Relu(x)  b = Neg(x)  y = Concat<axis = 2>(a, b)", 4),
    "Slice of channels": ("a = Slice(x, one, three, channel)  y = Concat<axis = 1>(a, a)", 4),
    "Slice of rows": ("y = Slice(x, one, three, row)", 4),
    "Gather of channels": ("y = Gather<axis = 1>(x, order)", 4),
    "Expand": ("a = GlobalMaxPool(x)  y = Expand(a, shape)", 4),
    "Where": ("c = Greater(gate, zero)  a = Neg(x)  y = Where(c, x, a)", 4),
    "scaling by a number": ("a = Mul(x, two)  y = Div(a, two)", 4),
    "scaling by channel": ("y = Mul(x, perchannel)", 8),
    "division by channel": ("y = Div(x, perchannel)", 8),
    "Add of a constant by channel": ("y = Add(x, perchannel)", 4),
    "Add of a number": ("y = Add(x, two)", 4),
    "Sub from a number": ("y = Sub(two, x)", 4),
    "Sum and Mean": ("a = Relu(x)  b = Sum(x, a, perchannel)  y = Mean(b, a)", 4),
    "a gate": ("a = Sigmoid(gate)  y = Mul(x, a)", 4),
    "a gate on the left": ("a = Sigmoid(gate)  y = Mul(a, x)", 4),
    "a product of both branches": ("a = Conv<group = 4, pads = [1,1,1,1]>(x, dw)  y = Mul(x, a)", 4),
    "BatchNormalization": ("y = BatchNormalization(x, g, shift, m, v)", 8),
    "InstanceNormalization": ("y = InstanceNormalization(x, g, shift)", 4),
    "depthwise Conv": ("y = Conv<group = 4, pads = [1,1,1,1]>(x, dw, b1)", 8),
    "grouped Conv": ("y = Conv<group = 2>(x, gw)", 8),
    "ConvTranspose": ("y = ConvTranspose<strides = [2,2]>(x, tw, b1)", 8),
    "grouped ConvTranspose": ("y = ConvTranspose<group = 2>(x, tgw, b1)", 8),
    "a residual connection": ("a = Relu(x)  c = Conv(a, iw)  y = Add(c, x)", 4),
    "an inner branch of a residual connection": ("a = Conv(x, iw)  r = Relu(a)  c = Conv(r, iw2)  y = Add(c, x)", 8),
    "squeeze and excitation": (
        "p = GlobalAveragePool(x)  c = Conv(p, iw)  r = Relu(c)  d = Conv(r, iw2)  s = HardSigmoid(d)  y = Mul(x, s)", 8,
    ),
    "size arithmetic": ("s = Shape(x)  n = Size(x)  y = Reshape(x, s)", 4),
}  # fmt: skip

CONSTANTS = {
    "w1": weights(4, 3, 3, 3), "b1": [4], "w2": [5, 4, 1, 1], "b2": [5], "slope": [4, 1, 1],
    "zero": np.float32(0), "six": np.float32(6), "two": np.float32(2), "ratio": np.float32(0.5), "off": np.bool_(False),
    "spatial": np.array([2, 3]), "channel": np.array([1]), "row": np.array([2]), "one": np.array([1]),
    "three": np.array([3]), "pads": np.array([0, 0, 1, 1, 0, 0, 2, 1]), "scales": np.array([1, 1, 2, 2], np.float32),
    "sizes": np.array([2, 4, 8, 9]), "flat": np.array([0, -1]), "image": np.array([-1, 4, 6, 6]),
    "split": np.array([0, 2, 2, 36]), "order": np.array([2, 0, 1, 3]), "shape": np.array([1, 1, 3, 3]),
    "perchannel": np.array([0.5, -3, 1, 7], np.float32).reshape(4, 1, 1), "g": [4], "shift": [4], "m": [4],
    "v": np.array([1, 2, 0.5, 1], np.float32), "dw": [4, 1, 3, 3], "gw": [4, 2, 1, 1], "tw": [4, 4, 2, 2],
    "tgw": [4, 2, 2, 2], "iw": [4, 4, 1, 1], "iw2": [4, 4, 1, 1],
}  # fmt: skip


def between(build, body, **more):
    """A model of two convolutions with `body` between them."""
    constants = {**CONSTANTS, **more}
    types = {"b": "bool", "i": "int64", "f": "float"}
    inputs = [
        f"{types[np.asarray(c).dtype.kind] if isinstance(c, (np.ndarray, np.generic)) else 'float'}"
        f"[{','.join(map(str, np.shape(c) if isinstance(c, (np.ndarray, np.generic)) else c))}] {name}"
        for name, c in constants.items()
    ]
    inputs = [text.replace("[]", "") for text in inputs]
    text = f"""g (float[2,3,8,8] image_in, float[2,4,1,1] gate, {", ".join(inputs)}) => (float[P,Q,R,S] out) {{
        x = Conv(image_in, w1, b1)
        {body}
        out = Conv(y, w2, b2)
    }}"""
    return build(text, **constants)


@pytest.mark.parametrize(("body", "free"), SPATIAL.values(), ids=SPATIAL)
def test_what_lets_factors_through(build, sample, body, free):
    feeds = sample(image_in=[2, 3, 8, 8], gate=[2, 4, 1, 1])
    model = between(build, body)
    reference = run(model, feeds)
    assert scramble(model) == free
    for name, array in run(model, feeds).items():
        np.testing.assert_array_equal(array, reference[name])
    check(model, feeds)
    check(model, feeds, data=feeds)


REFUSED = {
    "Sigmoid": ("y = Sigmoid(x)", "Sigmoid"),
    "Elu": ("y = Elu(x)", "Elu"),
    "Relu6": ("y = Clip(x, zero, six)", "max of 6 would have to be another"),
    "Clip with computed bounds": ("t = ReduceMax<keepdims = 0>(gate)  y = Clip(x, zero, t)", "max"),
    "Pad with ones": ("y = Pad(x, pads, two)", "not zero"),
    "Resize that crops": (
        'y = Resize<coordinate_transformation_mode = "tf_crop_and_resize">(x, roi, scales)', "extrapolates"),
    "an input joins": ("y = Add(x, gate)", "joined"),
    "the square": ("y = Mul(x, x)", "Mul"),
    "division": ("a = Relu(x)  y = Div(two, a)", "Div"),
    "a computed slope": ("s = Neg(x)  y = PRelu(x, s)", "slope"),
    "an output": ("y = Relu(x)  seen = Identity(x)", "output 'seen'"),
    "LayerNormalization": ("y = LayerNormalization<axis = 1>(x, lng)", "normalizes"),
    "a backward slice": ("y = Slice(x, three, ends, channel, back)", "backwards"),
    "a body": (
        "c = Constant<value = bool {1}>()  y = If(c) <then_branch = t () => (float[A,B,C,D] p) { p = Relu(x) }, "
        "else_branch = e () => (float[A,B,C,D] q) { q = Neg(x) }>", "read in a body",
    ),
    "shared weights used otherwise": ("a = Conv(x, iw)  k = Neg(iw)  y = Conv(a, k)", "used in other ways"),
}  # fmt: skip


@pytest.mark.parametrize(("body", "reason"), REFUSED.values(), ids=REFUSED)
def test_what_does_not(build, sample, body, reason):
    feeds = sample(image_in=[2, 3, 8, 8], gate=[2, 4, 1, 1])
    more = {"lng": [4, 6, 6], "roi": [8], "back": np.array([-1]), "ends": np.array([-9])}
    model = between(build, body, **more)
    if "seen" in body:
        model.graph.outputs.append(next(v for n in model.graph for v in n.outputs if v.name == "seen"))
    before = model.graph.initializers["w1"].const_value.numpy().copy()
    result = check(model, feeds)
    np.testing.assert_array_equal(model.graph.initializers["w1"].const_value.numpy(), before)
    assert reason in result.skipped[0][1]


def test_factors_of_a_flattened_image_go_to_every_pixel(build, sample):
    model = build(
        """g (float[N,3,6,6] x, float[4,3,3,3] w, float[4] b, float[64,5] m) => (float[N,5] y) {
            c = Conv(x, w, b)
            r = Relu(c)
            f = Flatten(r)
            y = Gemm(f, m)
        }""",
        w=weights(4, 3, 3, 3),
        b=[4],
        m=[64, 5],
    )
    feeds = sample(x=[2, 3, 6, 6])
    assert check(model, feeds, data=feeds).report["channels"] > 0
    rows = np.abs(model.graph.initializers["w"].const_value.numpy()).max(axis=(1, 2, 3))
    assert rows.max() / rows.min() < 2.0**7, "of 2 ** 11"


def test_a_computed_bias(build, sample):
    model = build(
        """g (float[N,3,8,8] x, float[4] b, float[4,3,3,3] w, float[5,4,1,1] z) => (float[N,5,6,6] y) {
            p = Conv(x, w, b)
            y = Conv(p, z)
        }""",
        w=weights(4, 3, 3, 3),
        z=[5, 4, 1, 1],
    )
    result = check(model, sample(x=[2, 3, 8, 8], b=[4]))
    assert not result.modified
    assert "its bias is not a float32 constant" in result.skipped[0][1]


@pytest.mark.parametrize("transposed", [0, 1])
def test_matrix_products(build, sample, transposed):
    shape = [4, 6] if transposed else [6, 4]
    model = build(
        f"""g (float[N,6] x, float[{shape[0]},{shape[1]}] a, float[1,4] c, float[4,4] d, float[4] e, float[4,3] f) => (float[N,3] y) {{
            p = Gemm<transB = {transposed}, alpha = 0.5, beta = 2.0>(x, a, c)
            q = Relu(p)
            r = MatMul(q, d)
            s = Add(r, e)
            t = Relu(s)
            y = MatMul(t, f)
        }}""",
        a=weights(*shape, axis=1 - transposed),
        c=[1, 4],
        d=weights(4, 4, axis=1),
        e=[4],
        f=[4, 3],
    )
    feeds = sample(x=[7, 6])
    assert check(model, feeds).report["channels"] > 3


def test_batches_of_unknown_size(build, sample):
    model = build(
        """g (float[B,S,6] x, float[6,4] a, float[4,3] f) => (float[B,S,3] y) {
            p = MatMul(x, a)
            q = Relu(p)
            y = MatMul(q, f)
        }""",
        a=weights(6, 4, axis=1),
        f=[4, 3],
    )
    assert check(model, sample(x=[2, 5, 6])).report["channels"] > 2


ATTENTION = """g (float[B,S,8] x, float[8,8] wq, float[8,8] wk, float[8,8] wv, float[8,8] wo, float[8] bq, float root,
                  int64[4] heads, int64[3] merged) => (float[B,S,8] y) {
    q0 = MatMul(x, wq)  q1 = Add(q0, bq)  q2 = Reshape(q1, heads)  q = Transpose<perm = [0,2,1,3]>(q2)
    k0 = MatMul(x, wk)  k2 = Reshape(k0, heads)  k = Transpose<perm = [0,2,3,1]>(k2)
    v0 = MatMul(x, wv)  v2 = Reshape(v0, heads)  v = Transpose<perm = [0,2,1,3]>(v2)
    s0 = MatMul(q, k)  s = Mul(s0, root)  p = Softmax(s)
    c0 = MatMul(p, v)  c1 = Transpose<perm = [0,2,1,3]>(c0)  c = Reshape(c1, merged)
    y = MatMul(c, wo)
}"""


def attention(build):
    columns = np.exp2(np.arange(8) % 5).astype(np.float32)
    rng = np.random.default_rng(3)
    return build(
        ATTENTION,
        wq=(rng.normal(0, 0.1, (8, 8)) * columns).astype(np.float32),
        wk=(rng.normal(0, 0.1, (8, 8)) / columns).astype(np.float32),
        wv=(rng.normal(0, 0.1, (8, 8)) * columns).astype(np.float32),
        wo=[8, 8],
        bq=[8],
        root=np.float32(0.5),
        heads=np.array([0, -1, 2, 4]),
        merged=np.array([0, -1, 8]),
    )


def test_attention(build, sample):
    """Queries against keys, and values against the output projection, per head and dimension."""
    feeds = sample(x=[2, 5, 8])
    model = attention(build)
    assert scramble(duplicate(model)) == 16
    keys = model.graph.initializers["wk"].const_value.numpy().copy()
    assert check(model, feeds, data=feeds).report["channels"] > 8
    factors = model.graph.initializers["wk"].const_value.numpy() / keys
    np.testing.assert_array_equal(factors, np.broadcast_to(factors[0], (8, 8)))
    assert (factors != 1).any()


def test_queries_that_meet_themselves(build, sample):
    """x x^T has no factors to give: they would have to be their own reciprocals."""
    model = build(
        """g (float[S,6] x, float[6,4] a) => (float[S,S] y) { p = MatMul(x, a)  t = Transpose(p)  y = MatMul(p, t) }""",
        a=weights(6, 4, axis=1),
    )
    result = check(model, sample(x=[5, 6]))
    assert not result.modified
    assert "reciprocal" in result.skipped[0][1]


def test_shared_weights_take_the_same_factors(build, sample):
    model = build(
        """g (float[N,3,8,8] x, float[4,3,3,3] w, float[4,4,1,1] s, float[4] b, float[5,4,1,1] z) => (float[N,5,6,6] y) {
            a = Conv(x, w)
            p = Conv(a, s, b)
            q = Relu(p)
            r = Conv(q, s, b)
            t = Relu(r)
            y = Conv(t, z)
        }""",
        w=weights(4, 3, 3, 3),
        s=[4, 4, 1, 1],
        b=[4],
        z=[5, 4, 1, 1],
    )
    feeds = sample(x=[2, 3, 8, 8])
    assert scramble(duplicate(model)) == 4, "a, p and r have the same factors"
    check(model, feeds)
    assert len([node for node in model.graph if node.op_type == "Conv" and node.inputs[1].name.startswith("s")]) == 2


def test_shared_biases_are_copied(build, sample):
    model = build(
        """g (float[N,3,8,8] x, float[4,3,3,3] w, float[4,4,1,1] s, float[4] b, float[5,4,1,1] z) => (float[N,5,6,6] y) {
            p = Conv(x, w, b)
            q = Relu(p)
            r = Conv(q, s, b)
            y = Conv(r, z)
        }""",
        w=weights(4, 3, 3, 3),
        s=[4, 4, 1, 1],
        b=[4],
        z=[5, 4, 1, 1],
    )
    feeds = sample(x=[2, 3, 8, 8])
    assert scramble(duplicate(model)) == 8
    check(model, feeds)


def test_every_consumer_takes_the_inverse(build, sample):
    model = build(
        """g (float[N,3,8,8] x, float[4,3,3,3] w, float[5,4,1,1] s, float[6,4,2,2] t, float[6,5,1,1] z)
            => (float[N,6,6,6] y, float[N,6,5,5] z2) {
            p = Conv(x, w)
            q = Relu(p)
            r = Conv(q, s)
            z2 = Conv(q, t)
            y = Conv(r, z)
        }""",
        w=weights(4, 3, 3, 3),
        s=[5, 4, 1, 1],
        t=[6, 4, 2, 2],
        z=[6, 5, 1, 1],
    )
    before = {name: model.graph.initializers[name].const_value.numpy().copy() for name in "wst"}
    check(model, sample(x=[2, 3, 8, 8]))
    factors = {name: model.graph.initializers[name].const_value.numpy() / before[name] for name in "wst"}
    produced = factors["w"][:, 0, 0, 0]
    assert (produced != 1).any()
    np.testing.assert_array_equal(factors["t"], np.broadcast_to(1 / produced[:, None, None], (6, 4, 2, 2)))
    np.testing.assert_array_equal(
        factors["s"][0], factors["t"][0, :, :1, :1] * factors["s"][0, 0] / factors["t"][0, 0, :1, :1]
    )


def test_weights_in_constant_nodes(build, sample):
    model = build(
        """g (float[N,2] x, float[2,3] f) => (float[N,3] y) {
            w = Constant<value = float[2,2] {1.0, 64.0, -1.0, 32.0}>()
            p = MatMul(x, w)
            q = Relu(p)
            y = MatMul(q, f)
        }""",
        f=[2, 3],
    )
    feeds = sample(x=[5, 2])
    reference = run(model, feeds)
    assert Equalize()(model).modified
    np.testing.assert_array_equal(run(model, feeds)["y"], reference["y"])


OLD = """<ir_version: 4, opset_import: ["": {opset}]>
g (float[N,3] x) => (float[N,2] y)
    <float[3,2] w = {{8.0,-0.1,4.0,0.3,-9.0,0.2}}, float[2] b = {{0.5,0.25}}, float[2,2] z = {{1.0,2.0,3.0,-1.0}}> {{
    p = MatMul(x, w)
    {body}
    y = MatMul(q, z)
}}"""


@pytest.mark.parametrize(
    ("opset", "body", "free"),
    [
        (9, "q = Clip<min = 0.0>(p)", 2),
        (9, "q = Clip<min = 0.0, max = 6.0>(p)", 0),
        (6, "q = Add<broadcast = 1>(p, b)", 0),
    ],
)
def test_old_opsets(parse, opset, body, free):
    assert scramble(parse(OLD.format(opset=opset, body=body))) == free


def test_defaults_that_callers_may_override_are_no_weights(parse):
    model = parse("""g (float[N,2] x, float[2,2] w) => (float[N,2] y) <float[2,2] w = {1.0, 64.0, -1.0, 32.0}> {
        p = MatMul(x, w)
        q = Relu(p)
        y = MatMul(q, w)
    }""")
    assert not Equalize()(model).modified


def test_dead_channels_are_not_revived(build, sample):
    dead = weights(4, 3, 3, 3)
    dead[1] = 0
    dead[2] *= 1e-12
    model = between(build, "y = Relu(x)", w1=dead, b1=np.zeros(4, np.float32))
    check(model, sample(image_in=[2, 3, 8, 8], gate=[2, 4, 1, 1]))
    np.testing.assert_array_equal(model.graph.initializers["w1"].const_value.numpy()[1:3], dead[1:3])


def test_a_quantized_model_gains_what_uneven_channels_cost(build, sample, quantize):
    feeds = sample(image_in=[2, 3, 8, 8], gate=[2, 4, 1, 1])
    bias = np.array([0.1, -0.2, 0.3, 0.1]) * UNEVEN
    undone = weights(5, 4, 1, 1, axis=1) / UNEVEN[:, None, None] ** 2
    uneven = between(build, "y = Relu(x)", b1=bias.astype(np.float32), w2=undone.astype(np.float32))
    for per_channel in (True, False):
        equal = duplicate(uneven)
        Equalize(data=feeds, per_channel=per_channel)(equal)
        before, after = (quantize(duplicate(m), feeds, per_channel=per_channel).sqnr["out"] for m in (uneven, equal))
        assert after > before + 10


def test_one_channel_among_equal_ones(build, sample):
    """The channels that are even already count for the mean, too."""
    rows, columns = np.ones((4, 3, 3, 3), np.float32), np.ones((5, 4, 1, 1), np.float32)
    rows[2] *= 256
    columns[:, 2] /= 256
    model = between(build, "y = Relu(x)", w1=rows, b1=np.zeros(4, np.float32), w2=columns)
    assert check(model, sample(image_in=[2, 3, 8, 8], gate=[2, 4, 1, 1])).report["channels"] == 4
    levels = np.abs(model.graph.initializers["w1"].const_value.numpy()).max(axis=(1, 2, 3))
    assert len(set(levels)) == 1


def test_stale_ranges_go(build, sample):
    from graphopt.passes.quantization import _ranges

    model = between(build, "y = Relu(x)")
    _ranges.write(next(iter(model.graph)).outputs[0], {"min-max": (np.float32(0), np.float32(1))})
    assert _ranges.read(model)
    assert Equalize()(model).modified
    assert not _ranges.read(model)


def test_what_is_quantized_already(build, graphopt, model_file, tmp_path):
    path = model_file("""g (float[N,4] x) => (float[N,4] y) <float s = {0.1}> {
        q = QuantizeLinear(x, s)
        y = DequantizeLinear(q, s)
    }""")
    ran = graphopt("equalize", path, "-o", tmp_path / "o.onnx", "--json")
    assert (ran.code, ran.error) == (1, "equalize: the model is quantized already: it has QuantizeLinear")


def test_bad_fields():
    with pytest.raises(ValueError, match="samples is 0"):
        Equalize(samples=0)


def test_variables():
    variables = Variables()
    a, b = variables.fresh(2), variables.fresh(2)
    variables.unify(a, -b)
    table = variables.resolved()
    np.testing.assert_array_equal(table[a], -table[b])
    variables.fix(b[:1], "because")
    assert variables.reason(a) is None
    assert variables.reason(a[:1]) == "because"
    variables.unify(a[1:], b[1:])
    assert "reciprocal" in variables.reason(a[1:])
    assert not variables.resolved().any()


def test_a_wrong_factor_would_be_seen(build, sample):
    """The comparison above is no formality: half of a factor is caught."""
    feeds = sample(image_in=[2, 3, 8, 8], gate=[2, 4, 1, 1])
    model = between(build, "y = Relu(x)")
    reference = run(model, feeds)
    value = model.graph.initializers["w1"]
    value.const_value = type(value.const_value)(value.const_value.numpy() * np.float32(2), name="w1")
    assert compare.first_mismatch(reference, run(model, feeds), 1e-4)
