"""Products of integers become one operator with their scales and bias, and attention that is made of three of them too."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt.passes.fusion.fuse import Fuse

B, S, N, H = 2, 5, 4, 8
D = N * H
LOWEST = float(np.finfo(np.float32).min)


def constants(draw):
    """Return the constants that the graphs here use: int8 matrices with a scale per column, and others."""
    rng = np.random.default_rng(0)
    made = {f"i{x}": rng.integers(-127, 128, (D, D)).astype(np.int8) for x in "qkv"}
    made |= {f"s{x}": (np.abs(draw(f"s{x}", (D,))) * 0.005 + 0.001).astype(np.float32) for x in "qkv"}
    made |= {f"b{x}": draw(f"b{x}", (D,), 0.1) for x in "qkv"}
    made["iw"], made["zw"] = rng.integers(0, 256, (D, 3 * D)).astype(np.uint8), np.full(3 * D, 128, np.uint8)
    made["sw"], made["bw"] = np.full(3 * D, 0.003, np.float32), draw("bw", (3 * D,), 0.1)
    made |= {"gamma": np.ones(D, np.float32), "beta": draw("beta", (D,))}
    shapes = {"four": [0, 0, N, H], "three": [0, 0, D], "thirds": [D, D, D], "halves": [D, 2 * D]}
    made |= {name: np.array(shape, np.int64) for name, shape in shapes.items()}
    numbers = {"scale": H**-0.5, "zero": 0.0, "lowest": LOWEST, "ninf": -np.inf, "low": -1e4, "step": 1 / 127}
    made |= {name: np.array(number, np.float32) for name, number in numbers.items()}
    return made | {"middle": np.array(128, np.uint8), "last": np.array([-1], np.int64)}


def product(name, output):
    """Return the nodes that multiply the integers of x by matrix i<name>."""
    return (
        f"m{name} = MatMulInteger(integers, i{name}, offset) c{name} = Cast<to = 1>(m{name}) f{name} = Mul(step_x, s{name}) "
        f"e{name} = Mul(c{name}, f{name}) {output} = Add(e{name}, b{name})"
    )


QUANTIZE = "integers, step_x, offset = DynamicQuantizeLinear(x)"
PROJECT = " ".join((QUANTIZE, product("q", "aq"), product("k", "ak"), product("v", "av")))
SPLIT = (
    "rq = Reshape(aq, four) q = Transpose<perm = [0,2,1,3]>(rq) rk = Reshape(ak, four) kt = Transpose<perm = [0,2,3,1]>(rk) "
    "rv = Reshape(av, four) v = Transpose<perm = [0,2,1,3]>(rv) p = MatMul(q, kt) s = Mul(p, scale)"
)
MIX = "weights = Softmax<axis = -1>({}) mixed = MatMul(weights, v) joined = Transpose<perm = [0,2,1,3]>(mixed) y = Reshape(joined, three)"


def text(*body, more="", outputs=f"float[B,S,{D}] y"):
    return f"g (float[B,S,{D}] x{more}) => ({outputs}) {{ {' '.join(body)} }}"


@pytest.fixture
def feeds(draw):
    return [{"x": draw("x", (b, S, D))} for b in (B, 1)]


def node_of(model, op_type):
    return next(node for node in model.graph if node.op_type == op_type)


# Products


@pytest.mark.parametrize(
    "after",
    ["y = LayerNormalization(t, gamma, beta)", "y = Gelu(t)", "u = Add(x, t) y = LayerNormalization(u, gamma, beta)"],
)
def test_a_bias_belongs_to_the_product(graph, fuse, draw, ops, feeds, after):
    model = graph(text(QUANTIZE, product("q", "t"), after), 20, **constants(draw))
    assert fuse(model, *feeds).report["DynamicQuantizeMatMul"] == 1
    assert len(node_of(model, "DynamicQuantizeMatMul").inputs) == 5
    assert "Add" not in ops(model)


def test_rows_with_scales_of_their_own(graph, fuse, draw, ops, feeds):
    body = (
        "a = Abs(x) largest = ReduceMax<keepdims = 1>(a, last) shares = Div(x, largest) "
        "integers = QuantizeLinear(shares, step, middle) m = MatMulInteger(integers, iq, middle) c = Cast<to = 1>(m) "
        "f = Mul(c, sq) r = Mul(f, largest) y = Add(r, bq)"
    )
    model = graph(text(body), **constants(draw))
    assert fuse(model, *feeds).report == {"MatMulIntegerToFloat": 1}
    assert ops(model)[-3:] == ["MatMulIntegerToFloat", "Mul", "Add"]


@pytest.mark.parametrize(
    "body",
    [
        "z = Cast<to = 2>(x) q, s, o = DynamicQuantizeLinear(x) m = MatMulInteger(q, iq, o) c = Cast<to = 1>(m) y = Mul(c, x)",
        "q, s, o = DynamicQuantizeLinear(x) m = MatMulInteger(q, iq) c = Cast<to = 1>(m) f = Mul(s, sq) y = Mul(c, f)",
        "q, s, o = DynamicQuantizeLinear(x) m = MatMulInteger(q, iq, o) c = Cast<to = 1>(m) f = Mul(s, x) y = Mul(c, f)",
    ],
    ids=["no scale", "another zero point", "a scale for each element"],
)
def test_other_products_of_integers_stay(graph, draw, body):
    assert "MatMulInteger" in [n.op_type for n in graph(text(body), **constants(draw)).graph]
    assert not Fuse()(graph(text(body), **constants(draw))).modified


# Attention


def test_projections_of_integers(graph, fuse, draw, ops, feeds):
    model = graph(text(PROJECT, SPLIT, MIX.format("s")), **constants(draw))
    assert fuse(model, *feeds).report["QAttention"] == 1
    assert ops(model) == ["DynamicQuantizeLinear", "QAttention"]


def test_a_packed_product_of_unsigned_integers(graph, fuse, draw, ops, feeds):
    body = (
        f"{QUANTIZE} m = MatMulInteger(integers, iw, offset, zw) c = Cast<to = 1>(m) f = Mul(step_x, sw) r = Mul(c, f) "
        "a = Add(r, bw) aq, ak, av = Split<axis = 2>(a, thirds)"
    )
    model = graph(text(body, SPLIT, MIX.format("s")), **constants(draw))
    assert fuse(model, *feeds).report["QAttention"] == 1
    assert ops(model) == ["DynamicQuantizeLinear", "QAttention"]


@pytest.mark.parametrize("fill", ["lowest", "ninf", "low"])
@pytest.mark.parametrize("seen", [True, False])
@pytest.mark.parametrize("queries", ["1", "S"])
@pytest.mark.parametrize("added", [True, False])
def test_masks_of_truth_values(graph, fuse, draw, ops, feeds, fill, seen, queries, added):
    choice = ("zero" if added else "s", fill)
    choice = choice if seen else choice[::-1]
    hide = f"h = Where(see, {', '.join(choice)}) t = {'Add(s, h)' if added else 'Identity(h)'}"
    model = graph(text(PROJECT, SPLIT, hide.replace("h = ", "t = ") if not added else hide, MIX.format("t"),
                       more=f", bool[B,1,{queries},S] see") if added else
                  text(PROJECT, SPLIT, f"t = Where(see, {', '.join(choice)})", MIX.format("t"), more=f", bool[B,1,{queries},S] see"),
                  **constants(draw))  # fmt: skip
    see = draw("see", (B, 1, S if queries == "S" else 1, S)) > 0
    see[..., 0] = True  # a row of -inf has no softmax
    given = feeds[0] | {"see": see if seen else ~see}
    result = Fuse()(model.clone())
    if not added and fill == "low":  # -1e4 in the place of a score is not what adding it gives
        assert "QAttention" not in result.report
        return
    assert fuse(model, given).report["QAttention"] == 1
    assert node_of(model, "QAttention").attributes["mask_filter_value"].as_float() == pytest.approx(
        {"lowest": LOWEST, "ninf": -np.inf, "low": -1e4}[fill]
    )
    assert ("Not" in ops(model)) != seen


@pytest.mark.parametrize("fill", ["lowest", "ninf"])
def test_samples_that_see_nothing(graph, fuse, draw, ops, feeds, fill):
    """With the lowest number all tokens count alike; NaN of -inf are replaced by zeros, as PyTorch does."""
    guard = (
        "w0 = Softmax<axis = -1>(t) nan = IsNaN(w0) weights = Where(nan, zero, w0)"
        if fill == "ninf"
        else "weights = Softmax<axis = -1>(t)"
    )
    end = MIX.partition(" mixed")
    body = (PROJECT, SPLIT, f"h = Where(see, zero, {fill}) t = Add(s, h)", guard, "mixed" + end[2])
    model = graph(text(*body, more=", bool[B,1,1,S] see"), **constants(draw))
    see = np.ones((B, 1, 1, S), bool)
    see[0] = False
    assert fuse(model, feeds[0] | {"see": see}).report["QAttention"] == 1


@pytest.mark.parametrize(
    ("more", "middle", "outputs"),
    [
        (", float[B,1,1,S] mask", "t = Add(s, mask)", ""),
        (", bool[1,1,S,S] see", "h = Where(see, zero, lowest) t = Add(s, h)", ""),
        (f", bool[B,{N},S,S] see", "h = Where(see, zero, lowest) t = Add(s, h)", ""),
        ("", "t = Identity(s)", f", float[B,S,{D}] ak"),
    ],
    ids=["a mask of any numbers", "one mask for all", "a mask for each head", "keys are used elsewhere"],
)
def test_otherwise_queries_keys_and_values_are_computed_first(graph, fuse, draw, ops, feeds, more, middle, outputs):
    end = MIX.format("s" if "Identity" in middle else "t")
    middle = "" if "Identity" in middle else middle
    model = graph(text(PROJECT, SPLIT, middle, end, more=more, outputs=f"float[B,S,{D}] y{outputs}"), **constants(draw))
    given = dict(feeds[0])
    if "mask" in more:
        given["mask"] = draw("mask", (B, 1, 1, S))
    if "see" in more:
        see = draw("see", (1, 1, S, S) if "1,1" in more else (B, N, S, S)) > 0
        see[..., 0] = True
        given["see"] = see
    report = fuse(model, given).report
    assert report["MultiHeadAttention"] == 1
    assert report["MatMulIntegerToFloat"] == 3
    assert "QAttention" not in ops(model)
