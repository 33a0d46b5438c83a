"""Quantize a model to int8 with another tool, in that tool's own virtual environment.

    PYTHON benchmarks/peer_int8.py TOOL MODEL --calibration CALIBRATION.npz -o OUT

TOOL is onnxruntime, onnxruntime-percentile, nncf or onnx-neural-compressor, each with the settings that its
documentation names for convolutional networks on a CPU. Needs numpy and the tool; nothing of graphopt.
`static_int8.py --peer NAME=OUT` then compares.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

_BATCH = 64


def batches(path: Path) -> Iterator[dict[str, np.ndarray]]:
    """Yield the calibration data."""
    arrays = np.load(path)
    inputs = {name: arrays[name] for name in arrays.files if name != "labels"}
    length = len(next(iter(inputs.values())))
    for start in range(0, length, _BATCH):
        yield {name: array[start : start + _BATCH] for name, array in inputs.items()}


def onnxruntime(model: Path, data: Path, output: Path, method: str) -> None:
    """Quantize with onnxruntime.quantization: QDQ, u8s8, per channel."""
    from onnxruntime import quantization as ort

    class Reader(ort.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._batches = batches(data)

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self._batches, None)

    types: dict[str, Any] = {"activation_type": ort.QuantType.QUInt8, "weight_type": ort.QuantType.QInt8}
    ort.quantize_static(
        model,
        output,
        Reader(),
        quant_format=ort.QuantFormat.QDQ,
        per_channel=True,
        calibrate_method=ort.CalibrationMethod[method],
        **types,
    )


def nncf(model: Path, data: Path, output: Path) -> None:
    """Quantize with nncf.quantize as it comes."""
    import nncf as tool
    import onnx

    made = tool.quantize(onnx.load(model), tool.Dataset(list(batches(data))), subset_size=8)
    onnx.save(made, output)


def neural_compressor(model: Path, data: Path, output: Path) -> None:
    """Quantize with onnx-neural-compressor: QDQ, u8s8, per channel."""
    from onnx_neural_compressor import data_reader
    from onnx_neural_compressor.quantization import QuantFormat, config, quantize

    class Reader(data_reader.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.rewind()

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self._batches, None)

        def rewind(self) -> None:
            self._batches = batches(data)

    settings = config.StaticQuantConfig(
        Reader(), quant_format=QuantFormat.QDQ, per_channel=True, calibration_sampling_size=512
    )
    quantize(str(model), str(output), settings)


def main() -> None:
    """Quantize."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    tools = {
        "onnxruntime": lambda *paths: onnxruntime(*paths, method="MinMax"),
        "onnxruntime-percentile": lambda *paths: onnxruntime(*paths, method="Percentile"),
        "nncf": nncf,
        "onnx-neural-compressor": neural_compressor,
    }
    parser.add_argument("tool", choices=tools)
    parser.add_argument("model", type=Path)
    parser.add_argument("--calibration", type=Path, required=True)
    parser.add_argument("-o", "--output", type=Path, required=True)
    arguments = parser.parse_args()
    tools[arguments.tool](arguments.model, arguments.calibration, arguments.output)


if __name__ == "__main__":
    main()
