"""Static int8 of graphopt and of other tools, against the float model, side by side in one process.

    python benchmarks/static_int8.py MODEL --calibration CALIBRATION.npz --test TEST.npz [--threads 2]
        [--graphopt SPEC] [--peer NAME=FILE ...]

Files of other tools come from `peer_int8.py`, which runs in their own environments. Accuracy, signal-to-noise ratio of the outputs (dB) and top-1 agreement with the float model come from all
test samples; latency is interleaved with the float model's in one process (median, 95 % interval).
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from graphopt import compare, io, registry, runtime, spec, target
from graphopt.data import LABELS, NpzData
from graphopt.latency import compare_latency
from graphopt.runtime import Session
from graphopt.target import Target

_BATCH = 100
_PRODUCTS = ("Conv", "FusedConv", "Gemm", "FusedGemm", "MatMul")


def main() -> None:
    """Quantize with both tools and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--calibration", type=Path, required=True)
    parser.add_argument("--test", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--graphopt", default="quantize", help="passes of graphopt, separated by semicolons")
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=FILE", help="what another tool made")
    parser.add_argument("--seconds", type=float, default=10.0, help="time for each latency comparison")
    arguments = parser.parse_args()
    place = target.find("cpu", arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        paths = {"float": arguments.model}
        paths["graphopt"] = Path(folder, "graphopt.onnx")
        _graphopt(arguments.model, arguments.calibration, paths["graphopt"], arguments.graphopt)
        paths |= {name: Path(file) for name, _, file in (peer.partition("=") for peer in arguments.peer)}
        sessions = {name: runtime.open_session(io.load(path), place) for name, path in paths.items()}
        outputs = {name: _outputs(session, arguments.test) for name, session in sessions.items()}
        labels = np.load(arguments.test)[LABELS]
        print(f"{'':24} accuracy     dB  agree  bytes      batch 1              batch 32         integer/float")
        for name, path in paths.items():
            size = path.stat().st_size / arguments.model.stat().st_size
            row = [
                f"{name:24} {_accuracy(outputs[name], labels):8.4f}",
                f"{compare.sqnr(outputs['float'], outputs[name]):6.1f}" if name != "float" else "      ",
                f"{np.mean(outputs[name].argmax(1) == outputs['float'].argmax(1)):6.4f} {size:6.3f}",
            ]
            for batch in (1, 32):
                feeds = next(_batches(arguments.test, batch))
                openers = [functools.partial(runtime.find(place).open_file, paths[n], place) for n in ("float", name)]
                timing = compare_latency(*openers, feeds, batch, seconds=arguments.seconds)
                low, high = timing.ci95
                row.append(f"{timing.after_ms:7.3f} ms x{timing.speedup:4.2f} [{low:4.2f} {high:4.2f}]")
            row.append("{}/{}".format(*_kernels(path, place)))
            print(" ".join(row))


def _graphopt(source: Path, calibration: Path, result: Path, passes: str) -> None:
    model = io.load(source)
    for text in ("simplify", *passes.split(";")):
        pass_ = spec.parse(text)
        if getattr(pass_, "data", None) == "":
            pass_ = dataclasses.replace(pass_, data=str(calibration))
        pass_(model)
    io.save(model, result)


def _batches(path: Path, size: int) -> Iterator[dict[str, np.ndarray]]:
    yield from (inputs for inputs, _ in NpzData(path).batches(size))


def _outputs(session: Session, data: Path) -> np.ndarray:
    """Return the first output for all samples, [samples, classes]."""
    return np.concatenate([next(iter(session.run(inputs).values())) for inputs in _batches(data, _BATCH)])


def _accuracy(outputs: np.ndarray, labels: np.ndarray) -> float:
    return float(np.mean(outputs.argmax(1) == labels))


def _kernels(path: Path, place: Target) -> tuple[int, int]:
    """Count convolutions and matrix products in integers and in float, as ONNX Runtime runs them."""
    optimized = registry.find("runtime", place.runtime)().optimized(io.load(path), place)
    counts = Counter(node.op_type for node in optimized.graph)
    integers = sum(
        n for op, n in counts.items() if op in ("QLinearConv", "QGemm", "QLinearMatMul", "MatMulIntegerToFloat")
    )
    return integers, sum(counts[op] for op in _PRODUCTS)


if __name__ == "__main__":
    main()
