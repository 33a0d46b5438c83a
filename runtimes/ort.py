"""ONNX Runtime, on any execution provider it offers."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from graphopt import io
from graphopt.errors import UserError
from graphopt.runtime import ExecutionError, Runtime, Session
from graphopt.runtimes import _ort_health
from graphopt.runtimes._ort_device import DEVICES, DeviceSession
from graphopt.runtimes._ort_session import OrtSession, library, one_line, refusals
from graphopt.target import CPU, Target

if TYPE_CHECKING:
    from graphopt.diagnosis import Finding
    from graphopt.profiling.trace import Recorder

_SILENT = 4
_LEVELS = {
    "all": "ORT_ENABLE_ALL",
    "layout": "ORT_ENABLE_LAYOUT",
    "extended": "ORT_ENABLE_EXTENDED",
    "basic": "ORT_ENABLE_BASIC",
    "none": "ORT_DISABLE_ALL",
}

_POLITE = {"session.force_spinning_stop": "1"}
"""Workers that go on spinning after a run take a core from the session that is timed next: two copies of ResNet-20
at batch 16 then measured 0.5 to 2 times each other. Without any spinning, batch 1 took 1.6 times as long as
deployed; stopping it at the end of each run measures 0.93 to 1.05 of each other, at the speed of a deployment."""


class OrtRuntime(Runtime):
    """ONNX Runtime, by default with all of its graph optimizations, as a deployment runs it."""

    def open(self, model: ir.Model, target: Target) -> Session:
        with io.serialized(model) as source:
            return _wrapped(_session(source, target, _options(target)), target)

    def open_file(self, path: str | Path, target: Target) -> Session:
        return _wrapped(_session(str(path), target, _options(target)), target)

    def optimized(self, model: ir.Model, target: Target) -> ir.Model | None:
        options = _options(target)
        with tempfile.TemporaryDirectory() as folder, io.serialized(model) as source:
            options.optimized_model_filepath = os.path.join(folder, "optimized.onnx")
            _session(source, target, options)
            return ir.external_data.load_to_model(ir.load(options.optimized_model_filepath))

    def recorder(self, model: ir.Model, target: Target) -> AbstractContextManager[Recorder]:
        from graphopt.runtimes import _ort_profile

        options = _options(target)

        def opened(source: bytes | str) -> tuple[Any, Session]:
            session = _session(source, target, options)
            return session, _wrapped(session, target)

        return _ort_profile.recorder(model, target, options, opened)

    def providers(self) -> Sequence[str]:
        try:
            return list(library().get_all_providers())
        except UserError:
            return ()

    def kernels(self, target: Target) -> frozenset[tuple[str, str]]:
        library()
        from onnxruntime.capi.onnxruntime_pybind11_state import get_all_opkernel_def

        return frozenset((k.domain, k.op_name) for k in get_all_opkernel_def() if k.provider == target.provider)

    def diagnose(self) -> Sequence[Finding]:
        return _ort_health.diagnose()


def _options(target: Target) -> Any:
    """Return the SessionOptions that a target asks for."""
    ort = library()
    options = ort.SessionOptions()
    options.log_severity_level = _SILENT
    options.intra_op_num_threads = target.threads
    if target.inter_threads:
        options.execution_mode = ort.ExecutionMode.ORT_PARALLEL
        options.inter_op_num_threads = target.inter_threads
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, _LEVELS[target.level])
    for key, value in {**_POLITE, **dict(target.config)}.items():
        options.add_session_config_entry(key, value)
    return options


def _session(source: bytes | str, target: Target, options: Any) -> Any:
    """Return an onnxruntime.InferenceSession that really uses the target's provider.

    Raises:
        ExecutionError: ONNX Runtime refuses the model.
        UserError: the provider is not installed, or does not load.
    """
    ort = library()
    available = ort.get_available_providers()
    if target.provider not in available:
        raise UserError(
            f"target '{target.name}' needs {target.provider}, but this onnxruntime offers {', '.join(available)}; "
            + (
                "install 'graphopt[gpu]' in place of 'graphopt[cpu]' or choose another target"
                if target.provider in ("CUDAExecutionProvider", "TensorrtExecutionProvider")
                else "install the onnxruntime package that has it in place of this one, or choose another target"
            )
        )
    if DEVICES.get(target.provider) == "cuda":
        _ort_health.preload(ort)
    providers: list[Any] = [(target.provider, dict(target.options))]
    if target.provider != CPU:
        providers.append(CPU)
    try:
        session = ort.InferenceSession(source, options, providers=providers)
    except refusals() as error:
        raise ExecutionError(one_line(error)) from error
    if target.provider not in session.get_providers():  # ONNX Runtime falls back without an error
        raise UserError(
            f"target '{target.name}': {target.provider} is installed but does not load; "
            "graphopt doctor says which library is missing"
        )
    return session


def _wrapped(session: Any, target: Target) -> Session:
    device = DEVICES.get(target.provider)
    if device is None:
        return OrtSession(session)
    options = dict(target.options)
    return DeviceSession(
        session, device, int(options.get("device_id", "0")), graphs=options.get("enable_cuda_graph") in ("1", "true")
    )
