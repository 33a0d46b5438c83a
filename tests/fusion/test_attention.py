"""Attention is found in the shapes that exporters give it, with its mask and scale, and left alone where it is not proven."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from graphopt import target
from graphopt.passes.fusion.fuse import Fuse

B, S, N, H = 2, 5, 4, 8
D = N * H
WEIGHTS = ("wq", "wk", "wv", "bq", "bk", "bv")
LOWEST = float(np.finfo(np.float32).min)


def noise(draw):
    """Return the constants that the graphs here use."""
    made = {f"w{x}": draw(f"w{x}", (D, D), 0.3) for x in "qkvo"} | {f"b{x}": draw(f"b{x}", (D,), 0.1) for x in "qkv"}
    made["wide"], made["wide_bias"] = draw("wide", (D, 3 * D), 0.3), draw("wide_bias", (3 * D,), 0.1)
    made["wk2"], made["wv2"] = draw("wk2", (D, D // 2), 0.3), draw("wv2", (D, D // 2), 0.3)
    shapes = {
        "four": [0, 0, N, H], "three": [0, 0, D], "five": [0, 0, 3, N, H], "rows": [-1, D], "back": [-1, S, D],
        "fixed": [-1, S, N, H], "merged": [-1, S, H], "unmerged": [-1, N, S, S], "scores3": [-1, S, S], "mixed4": [-1, N, S, H],
        "thirds": [D, D, D], "ones": [1, 1, 1], "zero1": [0], "two1": [2], "one1": [1], "half4": [0, 0, N // 2, H],
        "repeat": [1, 1, 2, 1, 1], "grouped": [0, N, -1, H],
    }  # fmt: skip
    made |= {name: np.array(shape, np.int64) for name, shape in shapes.items()}
    made |= {f"i{i}": np.array(i, np.int64) for i in range(3)}
    numbers = {
        "scale": H**-0.5,
        "root": H**0.5,
        "part": H**-0.25,
        "zero": 0.0,
        "lowest": LOWEST,
        "ninf": -np.inf,
        "low": -1e4,
    }
    return made | {name: np.array(number, np.float32) for name, number in numbers.items()}


PROJECT = "mq = MatMul(x, wq) aq = Add(mq, bq) mk = MatMul(x, wk) ak = Add(bk, mk) mv = MatMul(x, wv) av = Add(mv, bv)"
SPLIT = (
    "rq = Reshape(aq, four) q = Transpose<perm = [0,2,1,3]>(rq) rk = Reshape(ak, four) k = Transpose<perm = [0,2,1,3]>(rk) "
    "rv = Reshape(av, four) v = Transpose<perm = [0,2,1,3]>(rv)"
)
SPLIT_ROWS = SPLIT.replace(" k = Transpose<perm = [0,2,1,3]>(rk)", "")
SCORE = "kt = Transpose<perm = [0,1,3,2]>(k) product = MatMul(q, kt) scores = Mul(product, scale)"
MIX = "mixed = MatMul(weights, v) joined = Transpose<perm = [0,2,1,3]>(mixed) y = Reshape(joined, three)"
SOFTMAX = "weights = Softmax<axis = -1>(scores)"
PLAIN = (PROJECT, SPLIT, SCORE, SOFTMAX, MIX)


def text(*body, more="", outputs=f"float[B,S,{D}] y", length="S"):
    return f"g (float[B,{length},{D}] x{more}) => ({outputs.replace('S', length)}) {{ {' '.join(body)} }}"


@pytest.fixture
def feeds(draw):
    return [{"x": draw("x", (b, S, D))} for b in (B, 1)]


@pytest.mark.parametrize(
    "body",
    [
        PLAIN,
        (PROJECT, SPLIT, "kt = Transpose<perm = [0,1,3,2]>(k) product = MatMul(q, kt) scores = Div(product, root)", SOFTMAX, MIX),
        (PROJECT, SPLIT_ROWS, "kt = Transpose<perm = [0,2,3,1]>(rk) product = MatMul(q, kt) scores = Mul(scale, product)", SOFTMAX, MIX),
        (PROJECT, SPLIT, "qs = Mul(q, part) kt = Transpose<perm = [0,1,3,2]>(k) ks = Mul(kt, part) scores = MatMul(qs, ks)", SOFTMAX, MIX),
        (PROJECT, SPLIT, "kt = Transpose<perm = [0,1,3,2]>(k) scores = MatMul(q, kt)", SOFTMAX, MIX),
        ("mq = MatMul(x, wq) ak = MatMul(x, wk) av = MatMul(x, wv) aq = Mul(mq, scale)", SPLIT,
         "kt = Transpose<perm = [0,1,3,2]>(k) scores = MatMul(q, kt)", SOFTMAX, MIX),
        ("m = MatMul(x, wide) a = Add(m, wide_bias) aq, ak, av = Split<axis = 2>(a, thirds)", SPLIT, SCORE, SOFTMAX, MIX),
        ("m = MatMul(x, wide) a = Add(m, wide_bias) r = Reshape(a, five) t = Transpose<perm = [2,0,3,1,4]>(r) "
         "q = Gather<axis = 0>(t, i0) k = Gather<axis = 0>(t, i1) v = Gather<axis = 0>(t, i2)", SCORE, SOFTMAX, MIX),
        ("m = MatMul(x, wide) a = Add(m, wide_bias) r = Reshape(a, five) t = Transpose<perm = [2,0,3,1,4]>(r) "
         "p1, p2, p3 = Split<axis = 0>(t, ones) q = Squeeze(p1, zero1) k = Squeeze(p2, zero1) v = Squeeze(p3, zero1)",
         SCORE, SOFTMAX, MIX),
    ],
    ids=["plain", "divided", "one transpose", "scale on both", "no scale", "scale before the heads", "split", "gather", "squeeze"],
)  # fmt: skip
def test_it_becomes_one_operator(graph, fuse, draw, ops, feeds, body):
    model = graph(text(*body), **noise(draw))
    assert fuse(model, *feeds).report["Attention"] == 1
    assert "Softmax" not in ops(model)
    assert model.graph.num_nodes() == 1


def test_heads_that_are_merged_with_the_batch(graph, fuse, draw, ops, feeds):
    """As older PyTorch code has it, for bmm: three axes, and four only for the mask."""
    body = (
        PROJECT, SPLIT,
        "q3 = Reshape(q, merged) k3 = Reshape(k, merged) v3 = Reshape(v, merged) kt = Transpose<perm = [0,2,1]>(k3) "
        "product = MatMul(q3, kt) p4 = Reshape(product, unmerged) s4 = Add(p4, mask) scores = Reshape(s4, scores3)",
        SOFTMAX, "m3 = MatMul(weights, v3) m4 = Reshape(m3, mixed4) joined = Transpose<perm = [0,2,1,3]>(m4) "
        "y = Reshape(joined, three)",
    )  # fmt: skip
    model = graph(text(*body, more=f", float[B,1,{S},{S}] mask", length=str(S)), **noise(draw))
    given = [f | {"mask": draw("mask", (len(f["x"]), 1, S, S))} for f in feeds]
    assert fuse(model, *given).report["Attention"] == 1
    assert ops(model) == ["Attention"]


def test_products_of_flattened_rows(graph, fuse, draw, ops, feeds):
    body = (
        "f = Reshape(x, rows) gq = Gemm(f, wq, bq) gk = Gemm<transB = 1>(f, wk, bk) mv = MatMul(f, wv) gv = Add(mv, bv) "
        "aq = Reshape(gq, back) ak = Reshape(gk, back) rv = Reshape(gv, fixed) v = Transpose<perm = [0,2,1,3]>(rv)",
        SPLIT.partition(" rv =")[0], SCORE, SOFTMAX, MIX,
    )  # fmt: skip
    model = graph(text(*body, length=str(S)), **noise(draw))
    assert fuse(model, *feeds).report["Attention"] == 1
    assert ops(model) == ["Attention"]


MASKS = {
    "keys": ("B,1,1,S", (B, 1, 1, S)),
    "queries and keys": ("B,1,S,S", (B, 1, S, S)),
    "one for all": ("1,1,S,S", (1, 1, S, S)),
    "two axes": ("S,S", (S, S)),
    "three axes": (f"{N},S,S", (N, S, S)),
    "of each head": (f"B,{N},S,S", (B, N, S, S)),
}


@pytest.mark.parametrize("kind", MASKS)
def test_a_mask_is_added_as_it_is(graph, fuse, draw, feeds, kind):
    declared, shape = MASKS[kind]
    body = (PROJECT, SPLIT, SCORE.replace("scores =", "s ="), "scores = Add(mask, s)", SOFTMAX, MIX)
    model = graph(text(*body, more=f", float[{declared}] mask"), **noise(draw))
    mask = np.where(draw("m", shape) > 0.5, LOWEST, draw("n", shape)).astype(np.float32)
    assert fuse(model, feeds[0] | {"mask": mask}).report["Attention"] == 1


@pytest.mark.parametrize("fill", ["lowest", "ninf"])
@pytest.mark.parametrize("seen", [True, False])
def test_scores_that_are_hidden(graph, fuse, draw, feeds, fill, seen):
    choice = f"s, {fill}" if seen else f"{fill}, s"
    body = (PROJECT, SPLIT, SCORE.replace("scores =", "s ="), f"scores = Where(see, {choice})", SOFTMAX, MIX)
    model = graph(text(*body, more=", bool[B,1,S,S] see"), **noise(draw))
    see = draw("see", (B, 1, S, S)) > 0
    see[..., 0], see[..., 1] = True, False
    assert fuse(model, feeds[0] | {"see": see}).report["Attention"] == 1


def test_all_is_added_that_is_added(graph, fuse, draw, feeds):
    body = (
        PROJECT, SPLIT, SCORE.replace("scores =", "s ="),
        "t = Add(s, places) u = Where(see, t, lowest) scores = Add(u, mask)", SOFTMAX, MIX,
    )  # fmt: skip
    more = f", float[1,{N},S,S] places, bool[S,S] see, float[B,1,1,S] mask"
    given = {"places": draw("p", (1, N, S, S)), "see": np.tril(np.ones((S, S), bool)), "mask": draw("m", (B, 1, 1, S))}
    assert fuse(graph(text(*body, more=more), **noise(draw)), feeds[0] | given).report["Attention"] == 1


def test_a_token_that_sees_nothing_stays_zero(graph, fuse, draw, feeds, ops):
    """PyTorch replaces the NaN of a softmax over nothing but minus infinity by zero."""
    body = (
        PROJECT, SPLIT, SCORE.replace("scores =", "s ="),
        "bias = Where(see, zero, ninf) scores = Add(s, bias) w = Softmax<axis = -1>(scores) n = IsNaN(w) weights = Where(n, zero, w)",
        MIX,
    )  # fmt: skip
    model = graph(text(*body, more=", bool[B,1,S,S] see"), **noise(draw))
    see = np.ones((B, 1, S, S), bool)
    see[0, 0, 2] = see[1, 0, :, 3] = False
    assert fuse(model, feeds[0] | {"see": see}).report["Attention"] == 1
    assert "IsNaN" in ops(model)


def test_finite_masks_need_no_guard(graph, fuse, draw, feeds, ops):
    body = (
        PROJECT, SPLIT, SCORE.replace("scores =", "s ="),
        "bias = Where(see, zero, lowest) scores = Add(s, bias) w = Softmax<axis = -1>(scores) n = IsNaN(w) weights = Where(n, zero, w)",
        MIX,
    )  # fmt: skip
    model = graph(text(*body, more=", bool[B,1,S,S] see"), **noise(draw))
    see = np.ones((B, 1, S, S), bool)
    see[0, 0, 2] = False
    fuse(model, feeds[0] | {"see": see})
    assert "IsNaN" not in ops(model)


def test_values_of_another_width(graph, fuse, draw, feeds):
    constants = noise(draw) | {
        "wv": draw("narrow", (D, 2 * N), 0.3),
        "bv": draw("nb", (2 * N,)),
        "vfour": np.array([0, 0, N, 2]),
    }
    body = (
        PROJECT,
        SPLIT.replace("Reshape(av, four)", "Reshape(av, vfour)"),
        SCORE,
        SOFTMAX,
        MIX.replace("three", "vthree"),
    )
    model = graph(text(*body, outputs=f"float[B,S,{2 * N}] y"), **constants, vthree=np.array([0, 0, 2 * N]))
    assert fuse(model, *feeds).report["Attention"] == 1


def test_other_keys_and_values(graph, fuse, draw, feeds, ops):
    """Cross-attention: the fused operator has no projections."""
    body = (
        PROJECT.replace("MatMul(x, wk)", "MatMul(z, wk)").replace("MatMul(x, wv)", "MatMul(z, wv)"),
        SPLIT,
        SCORE,
        SOFTMAX,
        MIX,
    )
    model = graph(text(*body, more=f", float[B,T,{D}] z"), **noise(draw))
    assert fuse(model, *(f | {"z": draw("z", (len(f["x"]), 7, D))} for f in feeds)).report["MultiHeadAttention"] == 1
    assert not {"Softmax", "Transpose", "Reshape"} & set(ops(model))


def test_a_cache_is_taken_as_it_is(graph, fuse, draw, ops):
    body = (
        PROJECT, SPLIT, "keys = Concat<axis = 2>(past_k, k) values = Concat<axis = 2>(past_v, v)",
        SCORE.replace("(k)", "(keys)"), SOFTMAX, MIX.replace("weights, v", "weights, values"),
    )  # fmt: skip
    cache = f", float[B,{N},P,{H}] past_k, float[B,{N},P,{H}] past_v"
    outputs = f"float[B,S,{D}] y, float[B,{N},T,{H}] keys, float[B,{N},T,{H}] values"
    model = graph(text(*body, more=cache, outputs=outputs), **noise(draw))
    feeds = [
        {"x": draw("x", (b, s, D)), "past_k": draw("k", (b, N, p, H)), "past_v": draw("v", (b, N, p, H))}
        for b, s, p in ((2, 5, 3), (1, 1, 4), (2, 3, 0))
    ]
    assert fuse(model, *feeds).report["MultiHeadAttention"] == 1
    assert "Softmax" not in ops(model)


GROUPED = (
    "aq = MatMul(x, wq) ak = MatMul(x, wk2) av = MatMul(x, wv2) rq = Reshape(aq, four) q = Transpose<perm = [0,2,1,3]>(rq) "
    "rk = Reshape(ak, half4) k1 = Transpose<perm = [0,2,1,3]>(rk) k2 = Unsqueeze(k1, two1) k3 = Expand(k2, repeat) k = Reshape(k3, grouped) "
    "rv = Reshape(av, half4) v1 = Transpose<perm = [0,2,1,3]>(rv) v2 = Unsqueeze(v1, two1) v3 = Expand(v2, repeat) v = Reshape(v3, grouped)",
    SCORE.replace("scores =", "s ="),
    "scores = Add(s, mask)",
    SOFTMAX,
    MIX,
)  # fmt: skip


def test_heads_that_share_keys_and_values(graph, fuse, draw, feeds, ops):
    model = graph(text(*GROUPED, more=", float[B,1,S,S] mask"), **noise(draw))
    given = [f | {"mask": draw("m", (len(f["x"]), 1, S, S))} for f in feeds]
    assert fuse(model, *given).report["GroupQueryAttention"] == 1
    assert not {"Softmax", "Transpose", "Reshape", "Unsqueeze"} & set(ops(model))


def test_the_target_decides(graph, draw, monkeypatch):
    """What its provider has no kernel for is not made."""
    known = target.capabilities(target.find("cpu"))
    few = known.__class__(**{**vars(known), "fused": frozenset({"com.microsoft::MultiHeadAttention"})})
    monkeypatch.setattr(target, "capabilities", lambda place: few)
    model = graph(text(*PLAIN), **noise(draw))
    assert Fuse()(model).report == {"MultiHeadAttention": 1}
    none = known.__class__(**{**vars(known), "fused": frozenset({"com.microsoft::Gelu"})})
    monkeypatch.setattr(target, "capabilities", lambda place: none)
    result = Fuse()(graph(text(*PLAIN), **noise(draw)))
    assert not result.modified
    assert result.skipped[0][1] == "the target has no kernel for it"


def test_a_matrix_with_another_use_stays(graph, fuse, draw, feeds, ops):
    model = graph(text(*PLAIN, "z = MatMul(x, wk)", outputs=f"float[B,S,{D}] y, float[B,S,{D}] z"), **noise(draw))
    assert fuse(model, *feeds).report == {"MultiHeadAttention": 1}


def test_sizes_are_read_off_the_inputs(graph, fuse, draw, feeds, ops):
    """A causal mask whose size is read off the queries in heads does not keep these."""
    body = (
        PROJECT, SPLIT, "sizes = Shape(q) length = Slice(sizes, two1, three1) square = Concat<axis = 0>(length, length) "
        "full = Expand(one, square) below = Trilu<upper = 0>(full) see = Cast<to = 9>(below)",
        SCORE.replace("scores =", "s ="), "scores = Where(see, s, ninf)", SOFTMAX, MIX,
    )  # fmt: skip
    model = graph(text(*body), **noise(draw), three1=np.array([3]), one=np.ones((), np.float32))
    assert fuse(model, *feeds).report["Attention"] == 1
    assert not {"MatMul", "Transpose", "Reshape"} & set(ops(model))


def test_masks_that_are_gathered_at_their_own_places(graph, fuse, draw, feeds, ops):
    """As transformers 4.53 and later build them."""
    body = (
        "sb = Shape<start = 0, end = 1>(given) ss = Shape<start = 1, end = 2>(given) nb = Squeeze(sb) ns = Squeeze(ss) "
        "rb = Range(i0, nb, i1) rs = Range(i0, ns, i1) b4 = Unsqueeze(rb, ax123) k4 = Unsqueeze(rs, ax012) q4 = Unsqueeze(rs, ax013) "
        "top = Max(b4, k4) full = Shape(top) be = Expand(b4, full) ke = Expand(k4, full) b5 = Unsqueeze(be, last) k5 = Unsqueeze(ke, last) "
        "at = Concat<axis = -1>(b5, k5) here = GatherND(given, at) always = GreaterOrEqual(q4, i0) see = And(always, here) "
        "bias = Where(see, zero, lowest)",
        PROJECT, SPLIT, SCORE.replace("scores =", "s ="), "scores = Add(s, bias)", SOFTMAX, MIX,
    )  # fmt: skip
    axes = {"ax123": [1, 2, 3], "ax012": [0, 1, 2], "ax013": [0, 1, 3], "last": [-1]}
    constants = noise(draw) | {name: np.array(value) for name, value in axes.items()}
    model = graph(text(*body, more=", bool[B,S] given"), **constants)
    given = [f | {"given": draw("given", (len(f["x"]), S)) > -0.5} for f in feeds]
    assert fuse(model, *given).report["Attention"] == 1
    assert not {"GatherND", "Range", "GreaterOrEqual", "And"} & set(ops(model))


@pytest.mark.parametrize(
    ("body", "more", "outputs", "reason"),
    [
        ((PROJECT, SPLIT, SCORE.replace("scores =", "s ="), "scores = Where(see, s, low)", SOFTMAX, MIX), ", bool[B,1,S,S] see",
         f"float[B,S,{D}] y", "it puts -10000 in place of scores, which adding a mask does not"),
        ((*PLAIN, "z = MatMul(weights, weights)"), "", f"float[B,S,{D}] y, float[B,{N},S,S] z", "its weights are used elsewhere too"),
        ((*PLAIN,), "", f"float[B,S,{D}] y, float[B,{N},S,S] weights", "its weights are used elsewhere too"),
        ((PROJECT, SPLIT, SCORE.replace("scores =", "s ="), "scores = Add(s, mask)", SOFTMAX, MIX), ", float[A,C,E,F] mask",
         f"float[B,S,{D}] y", "the shape of what is added to the scores is not proven to be that of a mask"),
        ((PROJECT, SPLIT, SCORE.replace("scores =", "s ="), "o = MatMul(q, kt) scores = Add(s, o)", SOFTMAX, MIX), "",
         f"float[B,S,{D}] y", "its scores are a sum of two products"),
        ((PROJECT, SPLIT, SCORE, SOFTMAX, "y = MatMul(weights, v)"), "", f"float[B,{N},S,{H}] y", "its heads are not joined by a Transpose"),
        ((PROJECT.replace("aq = Add(mq, bq)", "aq = Add(mq, any)"), SPLIT, SCORE, SOFTMAX, MIX), ", float[F,S,G] any",
         f"float[B,S,{D}] y", "the number of heads or their size is not proven"),
    ],
    ids=["a mild fill", "weights used", "weights are an output", "unknown mask", "two products", "no transpose", "unknown batch"],
)  # fmt: skip
def test_what_stays(graph, fuse, draw, ops, body, more, outputs, reason):
    model = graph(text(*body, more=more, outputs=outputs), **noise(draw))
    result = fuse(model, only=("attention",))
    assert not result.modified
    assert result.skipped == [("", reason)] or result.skipped[0][1] == reason


def test_a_default_that_callers_may_override_is_no_constant(graph, fuse, draw, feeds):
    """The matrix stays an input; the scale does, too, so that nothing is proven."""
    model = graph(text(*PLAIN, more=f", float[{D},{D}] wk"), **noise(draw))
    assert model.graph.inputs[-1].is_initializer()
    assert fuse(model, *feeds, feeds[0] | {"wk": draw("other", (D, D))}).report == {"MultiHeadAttention": 1}
    model = graph(text(*PLAIN, more=", float scale"), **noise(draw))
    assert not fuse(model, *feeds, feeds[0] | {"scale": np.array(3, np.float32)}, only=("attention",)).modified


def test_in_a_branch(graph, fuse, draw, ops, feeds):
    """There, sizes are proven if they are numbers, and those of reshaping are not looked up outside."""
    body = " ".join(PLAIN).replace("y = Reshape", "inner = Reshape").replace("four", "split").replace("three", "whole")
    inner = f"split = Constant<value_ints = [0,0,{N},{H}]>() whole = Constant<value_ints = [0,0,{D}]>() {body}"
    model = graph(
        f"g (float[{B},{S},{D}] x, bool c) => (float[{B},{S},{D}] y) {{ y = If(c) <"
        f"then_branch = t () => (float[{B},{S},{D}] inner) {{ {inner} }}, "
        f"else_branch = e () => (float[{B},{S},{D}] n) {{ n = Neg(x) }}> }}",
        **noise(draw),
    )
    assert fuse(model, *(feeds[0] | {"c": np.array(c)} for c in (True, False))).report["Attention"] == 1
    assert "Softmax" not in ops(model)


def test_half_precision(graph, draw):
    model = graph(text(*PLAIN).replace("float[", "float16["), **cast(draw, np.float16))
    assert Fuse()(model).report["Attention"] == 1
    made = next(node for node in model.graph if node.op_type == "Attention")
    assert made.inputs[1].dtype == ir.DataType.FLOAT16


def test_double_precision_has_no_kernel(graph, draw):
    result = Fuse()(graph(text(*PLAIN).replace("float[", "double["), **cast(draw, np.float64)))
    assert not result.modified
    assert result.skipped[0][1] == "its type is neither float32 nor float16"


def cast(draw, dtype):
    return {name: array.astype(dtype) if name in ("scale", *WEIGHTS) else array for name, array in noise(draw).items()}
