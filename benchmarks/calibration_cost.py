"""What calibration costs, in time and peak memory, against one forward pass over the same data.

    python benchmarks/calibration_cost.py MODEL --calibration CALIBRATION.npz [--threads 2]

Every run is a process of its own, and the methods take turns. Times leave out imports and include opening
the model; "added" is the peak memory beyond that of the forward pass.
"""

from __future__ import annotations

import argparse
import json
import logging
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from graphopt import io, runtime, spec, target
from graphopt.data import NpzData

_METHODS = ("forward", "calibrate", "onnxruntime-minmax", "onnxruntime-entropy")


def main() -> None:
    """Run every method in turn and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--calibration", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=_METHODS, help="run one method here, and print seconds and bytes as JSON")
    arguments = parser.parse_args()
    if arguments.only:
        print(json.dumps(_run(arguments)))
        return
    results: dict[str, list[tuple[float, int]]] = {name: [] for name in _METHODS}
    for number in range(arguments.rounds):
        for name in _METHODS[: 2 if number else None]:  # the slow ones once
            command = [sys.executable, *sys.argv, "--only", name]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            results[name].append(tuple(json.loads(output.splitlines()[-1])))  # onnxruntime prints, too
    forward_seconds = statistics.median(seconds for seconds, _ in results["forward"])
    forward_bytes = max(peak for _, peak in results["forward"])
    print(f"{'':20} seconds  times forward   peak MB  added MB")
    for name, runs in results.items():
        seconds, peak = statistics.median(s for s, _ in runs), max(p for _, p in runs)
        added = (peak - forward_bytes) / 1e6
        print(f"{name:20} {seconds:7.3f} {seconds / forward_seconds:14.2f} {peak / 1e6:9.0f} {added:9.0f}")


def _run(arguments: argparse.Namespace) -> tuple[float, int]:
    """Return the seconds a method takes, and the peak memory of this process in bytes."""
    prepared = _prepare(arguments)
    start = time.perf_counter()
    prepared()
    seconds = time.perf_counter() - start
    return seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _prepare(arguments: argparse.Namespace) -> Callable[[], object]:
    """Import what a method needs and return what is to be timed."""
    model, place = io.load(arguments.model), target.find("cpu", arguments.threads)
    import onnxruntime  # noqa: F401

    if arguments.only == "forward":
        return lambda: _forward(runtime.open_session(model, place), arguments)
    if arguments.only == "calibrate":
        fields = {"data": str(arguments.calibration), "threads": arguments.threads, "batch": arguments.batch}
        calibrate = spec.build("calibrate", fields)
        return lambda: calibrate(model)
    return _onnxruntime(arguments)


def _forward(session: runtime.Session, arguments: argparse.Namespace) -> None:
    for inputs in _batches(arguments):
        session.run(inputs)


def _onnxruntime(arguments: argparse.Namespace) -> Callable[[], object]:
    from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, create_calibrator

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._batches = _batches(arguments)

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self._batches, None)

    logging.getLogger().setLevel(logging.ERROR)
    method = CalibrationMethod.Entropy if arguments.only.endswith("entropy") else CalibrationMethod.MinMax

    def calibrate() -> None:
        with tempfile.TemporaryDirectory() as folder:
            calibrator = create_calibrator(
                arguments.model, augmented_model_path=str(Path(folder, "a.onnx")), calibrate_method=method
            )
            calibrator.collect_data(Reader())
            calibrator.compute_data()

    return calibrate


def _batches(arguments: argparse.Namespace) -> Iterator[dict[str, np.ndarray]]:
    yield from (inputs for inputs, _ in NpzData(arguments.calibration).batches(arguments.batch))


if __name__ == "__main__":
    main()
