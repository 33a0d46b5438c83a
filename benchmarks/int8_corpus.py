"""Run `quantize` over a folder of other people's networks and tell what comes of each.

    python benchmarks/int8_corpus.py FOLDER [--out rows.json] [--only TEXT] [--min-sqnr 20] [--samples 32]

Calibration data are random but plausible: the shapes and value ranges of `inputs.json` beside the folder, smooth in the
spatial axes of images, 32 samples (16 of them held out to measure the signal-to-noise ratio). Every network gets a child
process. Afterwards the file is loaded again, run, and timed against the simplified float model.
"""

from __future__ import annotations

import argparse
import collections
import json
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from graphopt.data import Batch
from graphopt.runtime import Port

_LIMIT_SECONDS = 240


def plausible(kind: str, shape: list[int], dtype: np.dtype, rng: np.random.Generator) -> np.ndarray:
    """Return one input: integers 0 or 1, floats smoothed along the last two axes of images."""
    if kind not in ("normal", "uniform01"):
        return rng.integers(0, 2, shape).astype(dtype)
    draw = rng.standard_normal if kind == "normal" else rng.random
    array = np.asarray(draw(shape))
    if len(shape) == 4 and min(shape[-2:]) >= 16:
        coarse = np.asarray(draw([*shape[:-2], shape[-2] // 8 + 1, shape[-1] // 8 + 1]))
        smooth = coarse.repeat(8, -2).repeat(8, -1)[..., : shape[-2], : shape[-1]]
        array = 0.7 * smooth + 0.3 * array
    return array.astype(dtype)


def generated(ports: Sequence[Port], shapes: dict[str, Any], samples: int) -> list[Batch]:
    """Return batches of plausible inputs, of shapes and kinds that are known, or as declared."""
    rng = np.random.default_rng(0)
    batches: list[Batch] = []
    for _ in range(samples):
        feeds = {}
        for port in ports:
            assert port.dtype is not None
            declared = {"kind": "normal", "shape": [d if isinstance(d, int) else 1 for d in port.shape or ()]}
            known = shapes.get(port.name) or declared
            feeds[port.name] = plausible(known["kind"], known["shape"], port.dtype.numpy(), rng)
        batches.append((feeds, None))
    return batches


def sweep_one(path: str, shapes: dict[str, Any], min_sqnr: float, samples: int) -> dict[str, Any]:
    """Quantize a file and say what came of it."""
    from graphopt import io, pipeline, runtime, spec, target
    from graphopt.data import FactoryData
    from graphopt.errors import UserError
    from graphopt.fidelity import Fidelity
    from graphopt.latency import compare_latency
    from graphopt.passbase import PreconditionError

    place = target.find("cpu")
    try:
        model = io.load(path)
        spec.build("simplify", {})(model)
        session = runtime.open_session(model, place)
        ports = runtime.model_inputs(model)
    except (UserError, runtime.ExecutionError) as error:
        return {"result": "float model does not run", "why": str(error)[:200]}
    batches = generated(ports, shapes, samples)
    samples = sum(len(next(iter(feeds.values()))) for feeds, _ in batches)
    data = FactoryData("generated", lambda: batches)
    start = time.perf_counter()
    made = pipeline.duplicate(model)
    try:
        result = spec.build("quantize", {"data": data, "min_sqnr": min_sqnr, "samples": samples // 2, "seconds": 0.7})(
            made
        )
    except PreconditionError as reason:
        cause = reason.__cause__
        if cause is not None and not isinstance(cause, UserError):
            return {"result": "bug", "why": traceback.format_exception(cause)[-3:]}
        return {"result": "left in float, explained", "why": str(cause or reason)}
    seconds = time.perf_counter() - start
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "int8.onnx"
        io.save(made, file)
        written = io.load(file)
    fidelity = Fidelity(session, data, ports, samples=samples // 2, skip=samples // 2)
    sqnr = fidelity.sqnr(runtime.open_session(written, place))
    feeds = batches[0][0]
    timing = compare_latency(
        lambda: runtime.open_session(model, place), lambda: runtime.open_session(written, place), feeds, 1, seconds=2
    )
    slower = timing.ci95[1] < 1
    return {
        "result": "slower" if slower else "quantized",
        "sqnr": {name: round(value, 1) for name, value in sqnr.items()},
        "speedup": round(timing.speedup, 3),
        "ci95": [round(x, 3) for x in timing.ci95],
        "bytes": [pipeline.measure(model)[1], pipeline.measure(written)[1]],
        "report": result.report,
        "float": len(result.skipped),
        "seconds": round(seconds, 1),
    }


def child(path: Path, shapes: dict[str, Any], args: argparse.Namespace) -> dict[str, Any]:
    """Sweep one file in a process of its own."""
    command = [
        sys.executable,
        __file__,
        "--child",
        str(path),
        json.dumps(shapes),
        str(args.min_sqnr),
        str(args.samples),
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=args.limit)
    except subprocess.TimeoutExpired:
        return {"file": path.name, "result": "timeout"}
    lines = done.stdout.splitlines()
    if done.returncode or not lines:
        return {"file": path.name, "result": "crash", "why": done.stderr.strip().splitlines()[-1:]}
    return {"file": path.name, **json.loads(lines[-1])}


def main() -> None:
    """Sweep the folder and print a row for each file, and counts."""
    if sys.argv[1] == "--child":
        print(json.dumps(sweep_one(sys.argv[2], json.loads(sys.argv[3]), float(sys.argv[4]), int(sys.argv[5]))))
        return
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--only", default="")
    parser.add_argument("--min-sqnr", type=float, default=20.0)
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--every", type=int, default=1, help="take one file out of so many")
    parser.add_argument("--limit", type=int, default=_LIMIT_SECONDS, help="seconds for each file")
    args = parser.parse_args()
    known = args.folder.parent / "inputs.json"
    shapes = json.loads(known.read_text()) if known.exists() else {}
    rows = []
    files = sorted(f for f in args.folder.glob("*.onnx") if args.only in f.name)
    for file in files[:: args.every]:
        row = child(file, shapes.get(file.stem, {}), args)
        rows.append(row)
        worst = min(row["sqnr"].values(), default=float("inf")) if "sqnr" in row else None
        print(
            f"{row['file']:36} {row['result']:26} {row.get('speedup', '')!s:6} {worst} {row.get('why', '')}", flush=True
        )
        if args.out:
            args.out.write_text("".join(json.dumps(r) + "\n" for r in rows))
    for result, count in collections.Counter(row["result"] for row in rows).most_common():
        print(f"{count:5} {result}")


if __name__ == "__main__":
    main()
