"""onnx's own backend node tests, through the torch runtime: its conformance suite."""

from __future__ import annotations

import functools
import warnings

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper

pytest.importorskip("torch")

from graphopt.runtimes._torch import table, values
from graphopt.runtimes._torch.module import OnnxModule

EXCLUDED = {
    "ImageDecoder": "decodes files of images, which is not arithmetic",
    "RegexFullMatch": "matches text",
    "StringNormalizer": "edits text",
    "StringSplit": "edits text",
    "TfIdfVectorizer": "counts words",
}
"""Operators left out, with the reason: nothing trains through them."""

DRAWN = ("test_bernoulli", "test_training_dropout")
"""Cases that compare random draws with those of another generator (those without a draw are not among them)."""

UNDRAWN = ("test_training_dropout_zero_ratio", "test_training_dropout_zero_ratio_mask")

NARROW = {"float16": 4 * 2.0**-10, "bfloat16": 4 * 2.0**-7}
"""Relative error accepted of half precision, whose sums depend on their order: a few units in the last place."""

ROUNDED = {"test_dft_inverse": 1e-6, "test_dft_inverse_opset19": 1e-6}
"""Cases in which zero is the difference of larger numbers, with the absolute error that they round to."""


@functools.cache
def cases():
    """Return onnx's node tests by name, those of the window of opsets."""
    from onnx.backend.test.loader import load_model_tests

    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        found = load_model_tests(kind="node")
    return {case.name: case for case in found if in_window(case.model)}


def in_window(model):
    versions = {entry.domain: entry.version for entry in model.opset_import}
    return table.FIRST <= versions.get("", table.FIRST - 1) <= table.LAST


def excluded(model):
    """Return the reason why a case is left out, or None."""
    return next((EXCLUDED[node.op_type] for node in model.graph.node if node.op_type in EXCLUDED), None)


NAMES = [
    name
    for name, case in cases().items()
    if not excluded(case.model) and (not name.startswith(DRAWN) or name.startswith(UNDRAWN))
]


def test_the_suite_is_as_large_as_we_say():
    assert len(NAMES) >= 1100


def test_the_excluded_operators_are_really_missing():
    assert not [name for name in EXCLUDED if table.find("", name, table.LAST)]


@pytest.mark.parametrize("name", NAMES)
def test_case(name):
    case = cases()[name]
    module = OnnxModule(ir.from_proto(case.model))
    outputs = [output.name for output in case.model.graph.output]
    for given, expected in case.data_sets:
        feeds = {port.name: loaded(value) for port, value in zip(case.model.graph.input, given, strict=True)}
        actual = module(feeds)
        for key, wanted in zip(outputs, expected, strict=True):
            compare(wanted, values.to_numpy(actual[key]), case.rtol, ROUNDED.get(name, case.atol))


def loaded(value):
    if isinstance(value, list):
        return [loaded(item) for item in value]
    return None if value is None else values.from_numpy(array(value))


def array(value):
    """Return what a case holds as an array; narrow types are still protocol buffers there."""
    return numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else np.asarray(value)


def compare(wanted, actual, rtol, atol):
    if isinstance(wanted, list):
        assert len(wanted) == len(actual)
        for one, other in zip(wanted, actual, strict=True):
            compare(one, other, rtol, atol)
        return
    if wanted is None:
        assert actual is None
        return
    wanted = array(wanted)
    assert wanted.shape == actual.shape
    if wanted.dtype.kind in "OUS":
        assert wanted.astype(object).tolist() == actual.tolist()
        return
    assert wanted.dtype == actual.dtype
    if wanted.dtype.kind in "bui" or wanted.dtype.itemsize == 1:
        np.testing.assert_array_equal(wanted.astype(np.float64), actual.astype(np.float64))
    else:
        rtol = max(rtol, NARROW.get(wanted.dtype.name, 0.0))
        kind = np.complex128 if wanted.dtype.kind == "c" else np.float64
        np.testing.assert_allclose(actual.astype(kind), wanted.astype(kind), rtol=rtol, atol=atol)
