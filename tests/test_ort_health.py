"""What is found wrong with an ONNX Runtime: the one that is installed, and pretended ones with faults and GPUs."""

from __future__ import annotations

import types

import numpy as np
import onnx
import pytest

from graphopt import hardware, registry
from graphopt.errors import UserError
from graphopt.runtimes import _ort_health

pytest.importorskip("onnxruntime")

CPU, CUDA, TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"
LINUX = (
    "[ONNXRuntimeError] : 1 : FAIL : Failed to load library libonnxruntime_providers_cuda.so with error: "
    "libcudnn.so.9: cannot open shared object file: No such file or directory"
)
WINDOWS = (
    'Error loading "C:\\Lib\\onnxruntime\\capi\\onnxruntime_providers_cuda.dll" which depends on "cublasLt64_12.dll" '
    'which is missing. (Error 126: "The specified module could not be found.")'
)
MACOS = "dlopen(/x/libp.dylib, 0x000A): Library not loaded: @rpath/libopenvino.2500.dylib\n  Referenced from: /x"


class Pretended(types.SimpleNamespace):
    """An onnxruntime that reads up to an opset and an IR version, with providers that work, fall back or raise."""

    def __init__(self, tmp_path, *, opset=99, ir=99, **providers):
        super().__init__(__version__="1.30", package_name="onnxruntime-gpu", __file__=str(tmp_path / "__init__.py"))
        self.limits = opset, ir
        self.fates = {f"{name}ExecutionProvider": fate for name, fate in {**providers, "CPU": "works"}.items()}
        self.SessionOptions = types.SimpleNamespace
        self.opened = []

    def get_available_providers(self):
        return list(self.fates)

    def InferenceSession(self, content, options, providers, enable_fallback):  # noqa: N802
        assert not enable_fallback, "it would print, and hide the reason"
        self.opened.append(providers)
        model = onnx.load_model_from_string(content)
        if model.opset_import[0].version > self.limits[0] or model.ir_version > self.limits[1]:
            raise RuntimeError("[ONNXRuntimeError] : 1 : FAIL : Unsupported")
        fate = self.fates[providers[0]]
        if isinstance(fate, Exception):
            raise fate
        x = np.maximum(np.array([[7, -6], [-9, 22]], np.float32), 0)
        return types.SimpleNamespace(
            get_providers=lambda: providers[1:] if fate == "falls back" else providers,
            run=lambda names, feeds: [x + 1 if fate == "lies" else x],
        )


@pytest.fixture
def pretend(tmp_path):
    return lambda **facts: Pretended(tmp_path, **facts)


def only(findings):
    findings = list(findings)
    assert len(findings) == 1, findings
    return findings[0]


def test_the_one_that_is_installed(monkeypatch):
    monkeypatch.setattr(hardware, "nvidia_gpus", list)
    findings = _ort_health.diagnose()
    assert {finding.check for finding in findings} == {"model versions", "providers", "targets"}
    assert "cpu: int8 as " in only(finding for finding in findings if finding.check == "targets").message
    fine = [finding for finding in findings if finding.check == "providers" and finding.status == "ok"]
    assert CPU in only(fine).message


def test_the_runtime_forwards(monkeypatch):
    monkeypatch.setattr(_ort_health, "diagnose", lambda: ["found"])
    assert list(registry.find("runtime", "ort")().diagnose()) == ["found"]
    assert list(registry.find("runtime", "reference")().diagnose()) == []


def test_none_that_can_be_imported(monkeypatch):
    def missing():
        raise UserError("ONNX Runtime is not installed")

    monkeypatch.setattr(_ort_health, "library", missing)
    assert _ort_health.diagnose() == []


def test_it_reads_all_that_onnx_writes(pretend):
    found = only(_ort_health.readable(pretend(opset=28, ir=14), "1.23", 28, 14))
    assert (found.status, found.message) == (
        "ok",
        "onnxruntime-gpu 1.30 reads what onnx 1.23 writes: opset 28, IR 14",
    )


@pytest.mark.parametrize(("opset", "ir"), [(26, 13), (28, 13), (13, 14), (24, 7)])
def test_it_reads_less_than_onnx_writes(pretend, opset, ir):
    found = only(_ort_health.readable(pretend(opset=opset, ir=ir), "1.23", 28, 14))
    assert found.status == "warning"
    assert found.message.endswith(f"reads up to {opset} and {ir}")
    assert f"opset <= {opset} and IR version <= {ir}, or pip install -U onnxruntime-gpu" in found.fix


def test_the_limits_of_the_one_that_is_installed_are_real():
    """What is called readable loads, and the next version does not."""
    import onnxruntime

    opset, ir = onnx.defs.onnx_opset_version(), onnx.IR_VERSION
    found = only(_ort_health.readable(onnxruntime, onnx.__version__, opset + 3, ir + 3))
    assert found.status == "warning"
    reads_opset, reads_ir = map(int, found.message.rpartition("up to ")[2].split(" and "))
    for version, limit in (("opset", reads_opset), ("ir", reads_ir)):
        for number, readable in ((limit, True), (limit + 1, False)):
            numbers = {"opset": 13, "ir": 7, version: number}
            assert bool(_ort_health._open(onnxruntime, CPU, **numbers)) == readable, (version, number)


def test_it_reads_nothing(pretend):
    """Then the versions are not what is wrong; the provider's error tells."""
    ort = pretend(opset=1)
    assert not list(_ort_health.readable(ort, "1.23", 28, 14))
    found = only(_ort_health.providers(ort, []))
    assert (found.status, "Unsupported" in found.message) == ("broken", True)


def test_each_provider_is_tried_alone(pretend):
    ort = pretend(CUDA="works", Tensorrt="works")
    found = only(_ort_health.providers(ort, ["Tesla T4"]))
    assert (found.status, found.message) == ("ok", f"{CUDA}, {TENSORRT}, {CPU}: a small model runs")
    assert ort.opened == [[CUDA, CPU], [TENSORRT, CPU], [CPU]]


@pytest.mark.parametrize(
    ("provider", "gpus", "status"),
    [
        ("CUDA", ["Tesla T4"], "broken"),
        ("CUDA", [], "warning"),
        ("Tensorrt", ["Tesla T4"], "note"),
        ("NvTensorRTRTX", ["Tesla T4"], "note"),
        ("OpenVINO", [], "warning"),
    ],
)
def test_how_bad_a_silent_fallback_is(pretend, provider, gpus, status):
    failed, fine = _ort_health.providers(pretend(**{provider: "falls back"}), gpus)
    assert (failed.status, fine.status) == (status, "ok")
    assert failed.message.startswith(f"{provider}ExecutionProvider does not work: ")
    assert fine.message == f"{CPU}: a small model runs"
    if provider == "CUDA" and not gpus:
        assert "no NVIDIA GPU can be seen" in failed.message
        assert "'graphopt[cpu]'" in failed.fix


def test_the_loader_says_why_it_fell_back(pretend, monkeypatch):
    monkeypatch.setattr(_ort_health, "loading_error", lambda folder, provider: LINUX)
    failed, _ = _ort_health.providers(pretend(CUDA="falls back"), ["Tesla T4"])
    assert failed.message == f"{CUDA} does not work: libcudnn.so.9 is missing, which comes with cuDNN 9"
    assert failed.fix.startswith("pip install 'onnxruntime-gpu[cuda,cudnn]', or put its folder on ")


def test_a_provider_that_raises(pretend, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    error = RuntimeError("CUDA failure 35: CUDA driver version is insufficient\n for CUDA runtime version")
    failed, _ = _ort_health.providers(pretend(CUDA=error), ["Tesla T4"])
    assert failed.message.endswith("CUDA driver version is insufficient for CUDA runtime version")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    failed, _ = _ort_health.providers(pretend(CUDA=error), ["Tesla T4"])
    assert failed.message.endswith("(CUDA_VISIBLE_DEVICES is '')")


def test_a_provider_that_computes_wrong_numbers(pretend):
    failed, _ = _ort_health.providers(pretend(CUDA="lies"), ["Tesla T4"])
    assert (failed.status, failed.message) == ("broken", f"{CUDA} computes wrong numbers")


@pytest.mark.parametrize(
    ("providers", "gpus", "expected"),
    [({}, ["Tesla T4"], True), ({}, [], False), ({"CUDA": ""}, ["Tesla T4"], False), ({"Dml": ""}, ["T"], False)],
)
def test_a_gpu_that_is_not_used(pretend, providers, gpus, expected):
    findings = list(_ort_health.unused(pretend(**providers), gpus))
    assert [finding.status for finding in findings] == ["note"] * expected
    if expected:
        assert "Tesla T4" in findings[0].message
        assert findings[0].fix.endswith("pip uninstall -y onnxruntime-gpu && pip install 'graphopt[gpu]'")


@pytest.mark.parametrize(
    ("message", "file"),
    [
        (LINUX, "libcudnn.so.9"),
        ("libcublasLt.so.12: cannot open shared object file: No such file or directory", "libcublasLt.so.12"),
        ("/opt/x/libp.so: cannot open shared object file: No such file or directory", "libp.so"),
        (WINDOWS, "cublasLt64_12.dll"),
        (MACOS, "libopenvino.2500.dylib"),
        ("/x/libp.so: undefined symbol: Provider_GetHost", None),
        ("CUDA failure 100: no CUDA-capable device is detected", None),
        ("", None),
    ],
)
def test_the_missing_library(message, file):
    assert _ort_health.missing_library(message) == file


@pytest.mark.parametrize(
    ("file", "what", "how"),
    [
        ("libcudnn.so.9", "cuDNN 9", "pip install 'onnxruntime-gpu[cuda,cudnn]'"),
        ("libcudnn_adv.so.9", "cuDNN 9", "pip install"),
        ("cudnn64_9.dll", "cuDNN 9", "pip install"),
        ("libcublasLt.so.12", "the CUDA toolkit 12", "pip install"),
        ("cublasLt64_13.dll", "the CUDA toolkit 13", "pip install"),
        ("libcudart.so.12", "the CUDA toolkit 12", "pip install"),
        ("libcufft.so.11", "the CUDA toolkit, whose version", "pip install"),
        ("libnvinfer.so.10", "TensorRT 10", "pip install tensorrt"),
        ("libcuda.so.1", "the NVIDIA driver", "--gpus all"),
        ("nvcuda.dll", "the NVIDIA driver", "install the driver"),
        ("libamdhip64.so.6", "AMD ROCm 6", "install the ROCm"),
        ("libopenvino.so.2500", "OpenVINO", "pip install openvino"),
        ("libnvinfer.so", "TensorRT", "pip install tensorrt"),
        ("VCRUNTIME140_1.dll", "the Visual C++ Redistributable", "Microsoft"),
        ("libsomething.so.3", "a package of the operating system", "install the package"),
    ],
)
def test_where_a_library_comes_from(file, what, how):
    found = _ort_health.source(file)
    assert found[0].startswith(what)
    assert (found[0] == what) or "," in found[0]
    assert how in found[1]


def test_the_loader_is_asked_for_the_library_of_the_provider(tmp_path, monkeypatch):
    loaded = []

    def load(path, mode):
        loaded.append(path.rpartition("onnxruntime_providers_")[2])
        if "tensorrt" in path or "cuda" in path:
            raise OSError(LINUX)

    monkeypatch.setattr(_ort_health.ctypes, "CDLL", load)
    for name in ("cuda", "shared", "tensorrt", "nv_tensorrt_rtx"):
        (tmp_path / f"libonnxruntime_providers_{name}.so").touch()
    assert _ort_health.loading_error(tmp_path, CUDA) == LINUX
    assert loaded == ["shared.so", "cuda.so"]
    assert _ort_health.loading_error(tmp_path, "NvTensorRTRTXExecutionProvider") == LINUX
    assert loaded[2:] == ["shared.so", "nv_tensorrt_rtx.so"]
    assert _ort_health.loading_error(tmp_path, "OpenVINOExecutionProvider") is None
    assert loaded[4:] == ["shared.so"]
    assert _ort_health.loading_error(tmp_path / "none", CUDA) is None


def test_a_library_that_is_damaged(tmp_path):
    (tmp_path / "libonnxruntime_providers_cuda.so").write_bytes(b"nothing")
    assert "libonnxruntime_providers_cuda.so" in _ort_health.loading_error(tmp_path, CUDA)


def test_cuda_of_python_packages_is_loaded_first(pretend, capsys):
    """Only where it is wanted, and what it prints stays off stdout."""
    calls = []
    ort = pretend(CUDA="works")
    _ort_health.preload(ort)
    ort.preload_dlls = lambda: (calls.append("cuda"), print("Failed to load libcublasLt.so.12"))
    _ort_health.preload(ort)
    out, err = capsys.readouterr()
    assert (out, "Failed" in err, calls) == ("", True, ["cuda"])
    del ort.fates[CUDA]
    _ort_health.preload(ort)
    assert calls == ["cuda"]
