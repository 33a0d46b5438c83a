"""Targets: written as text, set in every detail, and what pays on them."""

from __future__ import annotations

import dataclasses

import pytest

from graphopt import hardware, target
from graphopt.errors import UsageError


def test_names_alone():
    assert target.find("cpu") == target.Target("cpu")
    assert target.find("cuda").provider == "CUDAExecutionProvider"
    assert target.find("reference").runtime == "reference"
    assert target.find("cpu", threads=3).threads == 3


def test_settings_options_and_configuration_are_told_apart():
    found = target.find("cuda{threads=2 level=basic device_id=1 enable_cuda_graph=1 session.disable_prepacking=1}")
    assert (found.threads, found.level) == (2, "basic")
    assert found.options == (("device_id", "1"), ("enable_cuda_graph", "1"))
    assert found.config == (("session.disable_prepacking", "1"),)
    assert target.find("cpu{threads=2}", threads=5).threads == 2, "what is written with the target counts more"


@pytest.mark.parametrize(
    "text",
    [
        "cpu",
        "cpu{threads=2}",
        "cpu{inter-threads=2 level=none}",
        "cuda{device_id=1}",
        "cpu{session.x='a b'}",
        "openvino{device_type=CPU}",
    ],
)
def test_text_and_back(text):
    found = target.find(text)
    assert target.find(str(found)) == found


@pytest.mark.parametrize(
    "text", ["tensorrt", "TensorrtExecutionProvider", "coreml", "CoreMLExecutionProvider", "dml", "qnn"]
)
def test_every_provider_that_onnxruntime_knows_is_a_target(text):
    found = target.find(text)
    assert found.runtime == "ort"
    assert found.provider.lower() == text.lower().removesuffix("executionprovider") + "executionprovider"
    assert target.find(found.name) == found


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gpu", r"unknown target 'gpu'; choose cpu, cuda, reference, torch or a provider of ONNX Runtime \(.*openvino"),
        ("cpu{thread=2}", "unknown option 'thread'; did you mean 'threads'?"),
        ("cpu{threads=two}", "target cpu: threads: 'two' is not a whole number"),
        ("cpu{threads=-1}", "threads: -1 is negative"),
        ("cpu{level=high}", "'high' is not one of all, layout, extended, basic, none"),
        ("cpu{threads}", "'threads' is not field=value"),
        ("cpu{threads=1 threads=2}", "given twice"),
        ("cpu{", "cannot read target 'cpu{'; write name or"),
    ],
)
def test_what_is_not_a_target(text, message):
    with pytest.raises(UsageError, match=message):
        target.find(text)


@pytest.fixture
def processor(monkeypatch):
    def pretend(*names):
        monkeypatch.setattr(hardware, "instructions", lambda: frozenset(names))
        target.capabilities.cache_clear()

    yield pretend
    target.capabilities.cache_clear()


@pytest.mark.parametrize(
    ("instructions", "integer", "channels"),
    [((), "u8s8", 8), (("avx2",), "u8s8", 8), (("avx2", "avx512"), "u8s8", 16), (("neon", "dotprod"), "s8s8", 16)],
)
def test_what_pays_on_a_processor(processor, instructions, integer, channels):
    processor(*instructions)
    found = target.capabilities(target.find("cpu"))
    assert (found.precision, found.integer, found.channels) == ("int8", integer, channels)
    assert found.instructions == set(instructions)


def test_the_runtime_s_own_list_of_kernels_counts():
    found = target.capabilities(target.find("cpu"))
    assert found.integer_conv is True
    assert {"com.microsoft::FusedConv", "com.microsoft::SkipLayerNormalization"} <= found.fused
    assert not any(name.startswith("::") for name in found.fused), "standard operators are not fusions"


def test_cuda_has_no_integer_convolution_so_int8_is_not_its_default():
    found = target.capabilities(target.find("cuda"))
    assert (found.precision, found.integer_conv, found.instructions) == ("float16", False, frozenset())
    assert target.find("cuda").recipe == "cuda"
    unknown = target.capabilities(dataclasses.replace(target.find("reference")))
    assert unknown.integer_conv is None
