"""Sessions on a device with memory of its own: inputs and outputs can be bound there, and runs captured as a graph."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

from graphopt.runtime import Arrays, ExecutionError
from graphopt.runtimes._ort_session import OrtSession, library, one_line, refusals

DEVICES = {
    "CUDAExecutionProvider": "cuda",
    "TensorrtExecutionProvider": "cuda",
    "NvTensorRTRTXExecutionProvider": "cuda",
    "DmlExecutionProvider": "dml",
    "CANNExecutionProvider": "cann",
}
"""What onnxruntime calls the memory of each provider that has its own."""

_UNCAPTURED = "-1"
"""`gpu_graph_id` of a run that is neither captured nor replayed."""


class DeviceSession(OrtSession):
    """A session that can keep inputs and outputs on its device.

    With CUDA graphs (`enable_cuda_graph`), a captured run reads and writes fixed addresses: only prepared runs
    are captured, each under an id of its own; ordinary runs copy, and are never captured.
    """

    def __init__(self, session: Any, device: str, device_id: int, *, graphs: bool = False) -> None:
        """Wrap a session.

        Args:
            session: the onnxruntime.InferenceSession.
            device: name of its memory (see DEVICES).
            device_id: which of several devices.
            graphs: whether the provider captures CUDA graphs.
        """
        super().__init__(session, _run_options(_UNCAPTURED) if graphs else None)
        self._place = device, device_id
        self._ids = map(str, itertools.count(1)) if graphs else None

    def prepare(self, feeds: Arrays) -> Callable[[], object]:
        if any(array.dtype.hasobject for array in feeds.values()):  # onnxruntime binds no text
            return super().prepare(feeds)
        try:
            binding = self._bind(feeds)
            if self._ids is None:
                options = None
            else:
                self._session.run_with_iobinding(binding, self._options)  # finds the shapes of the outputs
                for name, value in zip(self._names, binding.get_outputs(), strict=True):
                    binding.bind_ortvalue_output(name, value)
                options = _run_options(next(self._ids))
        except refusals() as error:
            raise ExecutionError(one_line(error)) from error

        def once() -> None:
            try:
                self._session.run_with_iobinding(binding, options)
                binding.synchronize_outputs()
            except refusals() as error:
                raise ExecutionError(one_line(error)) from error

        return once

    def _bind(self, feeds: Arrays) -> Any:
        value = library().OrtValue
        binding = self._session.io_binding()
        for name, array in feeds.items():
            binding.bind_ortvalue_input(name, value.ortvalue_from_numpy(array, *self._place))
        for name in self._names:
            binding.bind_output(name, *self._place)
        return binding


def _run_options(graph: str) -> Any:
    options = library().RunOptions()
    options.add_run_config_entry("gpu_graph_id", graph)
    return options
