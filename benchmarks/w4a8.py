"""Recovery without labels after static quantization: what each recipe keeps of a model, and how long it takes.

    python benchmarks/w4a8.py MODEL --calibration CALIBRATION.npz --test TEST.npz [--weights int4] [--recipe SPECS ...]

A recipe is passes separated by semicolons, which run on the quantized model; `plain` is none. Accuracy, top-1 agreement
with the float model and signal-to-noise ratio (dB) of the first output come from all samples of TEST.npz; seconds are of
the recipe alone, by the clock and of the processor.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import onnx_ir as ir

from graphopt import compare, io, runtime, spec, target
from graphopt.data import LABELS, NpzData
from graphopt.pipeline import duplicate

_BATCH = 250
_RECIPES = (
    "plain",
    "correct-bias{method=analytic}",
    "correct-bias",
    "round-weights{method=search}",
    "round-weights{method=adaround}",
    "round-weights",
    "round-weights;correct-bias",
)


def main() -> None:
    """Print one row per recipe."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--calibration", type=Path, required=True)
    parser.add_argument("--test", type=Path, required=True)
    parser.add_argument("--weights", default="int4", help="what quantize-static keeps weights in")
    parser.add_argument("--recipe", action="append", help="passes, separated by semicolons")
    arguments = parser.parse_args()
    reference = io.load(arguments.model)
    spec.build("simplify", {})(reference)
    labels = np.load(arguments.test)[LABELS]
    expected = _outputs(reference, arguments.test)
    print(f"{'float':44} accuracy {np.mean(expected.argmax(1) == labels):.4f}", flush=True)
    for recipe in arguments.recipe or _RECIPES:
        model = _quantized(reference, arguments.calibration, arguments.weights)
        clock, processor = time.perf_counter(), time.process_time()
        for step in recipe.split(";") if recipe != "plain" else ():
            name, fields = spec.split(step, "pass")
            spec.build(name, {"reference": reference, "data": arguments.calibration, **fields})(model)
        seconds = f"{time.perf_counter() - clock:6.1f} s ({time.process_time() - processor:.1f} s of processor)"
        found = _outputs(model, arguments.test)
        accuracy, agreement = np.mean(found.argmax(1) == labels), np.mean(found.argmax(1) == expected.argmax(1))
        sqnr = compare.sqnr(expected, found)
        print(f"{recipe:44} accuracy {accuracy:.4f} agrees {agreement:.4f} {sqnr:5.2f} dB {seconds}", flush=True)


def _quantized(reference: ir.Model, calibration: Path, weights: str) -> ir.Model:
    model = duplicate(reference)
    spec.build("calibrate", {"data": calibration})(model)
    spec.build("quantize-static", {"weights": weights})(model)
    return model


def _outputs(model: ir.Model, test: Path) -> np.ndarray:
    session = runtime.open_session(model, target.find("cpu"))
    return np.concatenate([next(iter(session.run(feeds).values())) for feeds, _ in NpzData(test).batches(_BATCH)])


if __name__ == "__main__":
    main()
