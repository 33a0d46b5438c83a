"""What may be wrong with an installed ONNX Runtime: models it cannot read, execution providers that do not load."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from graphopt import hardware
from graphopt.errors import UserError
from graphopt.health.finding import Finding, Status, one_line
from graphopt.runtimes._ort_session import library, refusals
from graphopt.target import CPU, TARGETS, capabilities

_CUDA = "CUDAExecutionProvider"
_NVIDIA = (_CUDA, "TensorrtExecutionProvider", "NvTensorRTRTXExecutionProvider")
_SILENT = 4

_MODEL = "g (float[2,2] x) => (float[2,2] y) { a = MatMul(x, x)  y = Relu(a) }"
_X = np.array([[1, 2], [3, -4]], np.float32)
_Y = np.array([[7, 0], [0, 22]], np.float32)
_OLD_OPSET, _OLD_IR = 13, 7
"""Versions that every ONNX Runtime of the last years reads."""

_PATH = "PATH" if sys.platform == "win32" else "LD_LIBRARY_PATH"
_CUDA_PACKAGES = "pip install 'onnxruntime-gpu[cuda,cudnn]'"
_SOURCES = (
    (r"cudnn", "cuDNN {}", _CUDA_PACKAGES),
    (r"cublas|cudart|nvrtc|nvjitlink", "the CUDA toolkit {}", _CUDA_PACKAGES),
    (r"cufft|curand|cusolver|cusparse", "the CUDA toolkit, whose version is not that of this file", _CUDA_PACKAGES),
    (r"nvinfer|nvonnxparser", "TensorRT {}", "pip install tensorrt"),
    (r"libcuda\.so|nvcuda", "the NVIDIA driver", "install the driver, or start the container with --gpus all"),
    (r"amdhip|hipblas|rocblas|miopen|migraphx", "AMD ROCm {}", "install the ROCm that this package was built for"),
    (r"openvino", "OpenVINO", "pip install openvino"),
    (r"vcruntime|msvcp", "the Visual C++ Redistributable", "install it from Microsoft"),
)
"""Patterns of libraries' names; what they come with, where {} is the number in the name; and how to get that."""


def diagnose() -> list[Finding]:
    """Examine the onnxruntime that is installed. One that cannot be imported is reported by whoever imports it."""
    try:
        ort = library()
    except UserError:
        return []
    import onnx

    gpus = hardware.nvidia_gpus()
    preload(ort)
    newest = onnx.defs.onnx_opset_version(), onnx.IR_VERSION
    return [*readable(ort, onnx.__version__, *newest), *providers(ort, gpus), *unused(ort, gpus), *targets(ort)]


def targets(ort: Any) -> Iterator[Finding]:
    """Say what pays on the targets that are installed here (see `graphopt.target.Capabilities`)."""
    for target in TARGETS.values():
        if target.runtime != "ort" or target.provider not in ort.get_available_providers():
            continue
        able = capabilities(target)
        first = f"int8 as {able.integer}" if able.precision == "int8" else able.precision
        conv = "" if able.integer_conv else ", no integer convolution"
        message = f"{target.name}: {first} first{conv}, channel counts in multiples of {able.channels}"
        yield Finding("targets", "ok", f"{message}, {len(able.fused)} operators beyond standard ONNX")


def preload(ort: Any) -> None:
    """Load CUDA and cuDNN from NVIDIA's Python packages: onnxruntime finds them there only if told to look."""
    if _CUDA in ort.get_available_providers() and hasattr(ort, "preload_dlls"):
        with contextlib.redirect_stdout(sys.stderr):  # it prints what it does not find
            ort.preload_dlls()


def readable(ort: Any, onnx_version: str, opset: int, ir: int) -> Iterator[Finding]:
    """Compare what onnx writes, up to this opset and IR version, with what onnxruntime reads, found by trying."""
    reads_opset = next((n for n in range(opset, _OLD_OPSET - 1, -1) if _open(ort, CPU, n, _OLD_IR)), None)
    reads_ir = next((n for n in range(ir, _OLD_IR - 1, -1) if _open(ort, CPU, _OLD_OPSET, n)), None)
    if reads_opset is None or reads_ir is None:
        return  # it loads no model at all, which the processor's provider tells
    name = f"{_package(ort)} {ort.__version__}"
    if (reads_opset, reads_ir) == (opset, ir):
        yield Finding("model versions", "ok", f"{name} reads what onnx {onnx_version} writes: opset {opset}, IR {ir}")
        return
    message = (
        f"onnx {onnx_version} writes up to opset {opset} and IR {ir}, {name} reads up to {reads_opset} and {reads_ir}"
    )
    fix = f"export with opset <= {reads_opset} and IR version <= {reads_ir}, or pip install -U {_package(ort)}"
    yield Finding("model versions", "warning", message, fix)


def providers(ort: Any, gpus: Sequence[str]) -> Iterator[Finding]:
    """Try every execution provider that onnxruntime was built with, since it falls back to the processor silently."""
    fine = []
    for provider in ort.get_available_providers():
        try:
            session = _open(ort, provider, _OLD_OPSET, _OLD_IR, tell=True)
            if provider not in session.get_providers():
                message = loading_error(Path(ort.__file__).parent / "capi", provider)
                yield _failed(provider, message or "onnxruntime does not say why", gpus)
            elif not np.array_equal(session.run(None, {"x": _X})[0], _Y):
                yield Finding(
                    "providers", "broken", f"{provider} computes wrong numbers", "update its driver and onnxruntime"
                )
            else:
                fine.append(provider)
        except refusals() as error:
            yield _failed(provider, str(error), gpus)
    if fine:
        yield Finding("providers", "ok", f"{', '.join(fine)}: a small model runs")


def unused(ort: Any, gpus: Sequence[str]) -> Iterator[Finding]:
    """Tell of a GPU that this onnxruntime was not built for."""
    if gpus and not {*_NVIDIA, "DmlExecutionProvider"} & {*ort.get_available_providers()}:
        message = f"there is a GPU ({gpus[0]}), but {_package(ort)} runs on the processor only"
        fix = f"to use the GPU: pip uninstall -y {_package(ort)} && pip install 'graphopt[gpu]'"
        yield Finding("providers", "note", message, fix)


def loading_error(folder: Path, provider: str) -> str | None:
    """Load the library of a provider and return what the system's loader has against it.

    Args:
        folder: where onnxruntime keeps its libraries.
        provider: the provider's name, from which that of its library follows.
    """
    stem = f"providers{provider.removesuffix('ExecutionProvider').lower()}"
    files = {path.name.replace("_", "").partition(".")[0]: path for path in folder.glob("*onnxruntime_providers_*")}
    for name, path in sorted(files.items(), key=lambda item: not item[0].endswith("providersshared")):
        if name.endswith(("providersshared", stem)):  # the first has what the others look for
            try:
                ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
            except OSError as error:
                return str(error)
    return None


def missing_library(message: str) -> str | None:
    """Return the file that the loader of Linux, Windows (as onnxruntime quotes it) or macOS says is missing."""
    for pattern in (
        r"([^\s/:]+): cannot open shared object file",
        r'"([^"\\/]+)" which is missing',
        r"Library not loaded: (?:\S*/)?(\S+)",
    ):
        if found := re.search(pattern, message):
            return found[1]
    return None


def source(file: str) -> tuple[str, str]:
    """Return what a library usually comes with, and how to get that."""
    number = re.search(r"(?:\.so\.|64_)(\d+)", file)
    for pattern, what, how in _SOURCES:
        if re.search(pattern, file, re.IGNORECASE):
            return what.format(number[1] if number else "").rstrip(), how
    return "a package of the operating system", "install the package that holds it"


def _failed(provider: str, reason: str, gpus: Sequence[str]) -> Finding:
    file = missing_library(reason)
    if file:
        what, how = source(file)
        reason, fix = f"{file} is missing, which comes with {what}", f"{how}, or put its folder on {_PATH}"
    else:
        reason, fix = one_line(reason), "see what it needs on https://onnxruntime.ai/docs/execution-providers"
    if provider in _NVIDIA and not gpus:
        reason += "; and no NVIDIA GPU can be seen here"
        fix = "without a GPU use 'graphopt[cpu]' in place of 'graphopt[gpu]'; with one, first see that nvidia-smi works"
    elif provider in _NVIDIA and "CUDA_VISIBLE_DEVICES" in os.environ:
        reason += f" (CUDA_VISIBLE_DEVICES is '{os.environ['CUDA_VISIBLE_DEVICES']}')"
    return Finding("providers", _severity(provider, gpus), f"{provider} does not work: {reason}", fix)


def _severity(provider: str, gpus: Sequence[str]) -> Status:
    """Return how bad it is without a provider. TensorRT comes with every package for CUDA, and few people want it."""
    if provider == CPU or (provider == _CUDA and gpus):
        return "broken"
    return "note" if "tensorrt" in provider.lower() else "warning"


def _open(ort: Any, provider: str, opset: int, ir: int, *, tell: bool = False) -> Any:
    """Open the small model; without `tell`, return None when onnxruntime refuses it."""
    import onnx.parser

    model = onnx.parser.parse_model(f'<ir_version: {ir}, opset_import: ["": {opset}]> {_MODEL}').SerializeToString()
    options = ort.SessionOptions()
    options.log_severity_level = _SILENT
    try:
        return ort.InferenceSession(model, options, providers=list({provider: 0, CPU: 0}), enable_fallback=0)
    except refusals():
        if tell:
            raise
        return None


def _package(ort: Any) -> str:
    return getattr(ort, "package_name", "onnxruntime")
