"""Every network of `models/`: exported, checked, and optimized without and with data.

    python benchmarks/networks.py [--only resnet20 ...]

Printed per network: nodes as exported, smallest signal-to-noise ratio of all outputs at all sizes against PyTorch, and
what `graphopt optimize` made of it: without data, and with 64 seeded samples of its example inputs for calibration.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import pkgutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

import graphopt
import graphopt.models
from graphopt.errors import UserError

_SAMPLES = 64


def factories() -> Iterator[tuple[str, str]]:
    """Yield module and name of every factory."""
    for found in pkgutil.iter_modules(graphopt.models.__path__):
        if found.ispkg or found.name.startswith("_"):
            continue
        module = importlib.import_module(f"graphopt.models.{found.name}")
        for name, value in vars(module).items():
            own = inspect.isfunction(value) and value.__module__ == module.__name__
            if own and not name.startswith("_") and name != "example_inputs":
                yield found.name, name


def calibration(module: str, path: Path) -> None:
    """Write samples like the example inputs."""
    draw = np.random.default_rng(0)
    arrays = {}
    for name, tensor in importlib.import_module(f"graphopt.models.{module}").example_inputs(_SAMPLES).items():
        array = tensor.numpy()
        arrays[name] = draw.permuted(array, axis=0) if array.dtype.kind == "i" else array
    np.savez(path, **arrays)  # type: ignore[arg-type]


def sweep(module: str, name: str, folder: Path) -> str:
    """Export and optimize one network; return its row."""
    start = time.perf_counter()
    exported = graphopt.export(f"graphopt.models.{module}:{name}", folder / "x.onnx")
    worst = min(output.sqnr for check in exported.checks for output in check.outputs)
    row = f"{name:16} {exported.met!s:5} {len(exported.checks)} sizes, {worst:5.0f} dB  {exported.nodes[1]:4} nodes"
    for data in (False, True):
        try:
            if data:
                calibration(module, folder / "d.npz")
            done = graphopt.optimize(folder / "x.onnx", folder / "y.onnx", data=folder / "d.npz" if data else None)
        except UserError as error:
            row += f"  not optimized with data: {error}"
            continue
        kept = [step.spec.partition("{")[0] for step in done.steps if step.status == "kept"]
        speed = f"{done.latency.speedup:.2f}x" if done.latency else ""
        row += (
            f"  {'with' if data else 'without'} data: met {done.met}, {speed}{', int8' if 'quantize' in kept else ''}"
        )
    return f"{row}  {time.perf_counter() - start:.0f} s"


def main() -> None:
    """Run over all networks."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", metavar="NAME")
    args = parser.parse_args()
    for module, name in factories():
        if args.only is None or name in args.only:
            with tempfile.TemporaryDirectory() as folder:
                print(sweep(module, name, Path(folder)), flush=True)


if __name__ == "__main__":
    main()
