"""What `mix-precision` makes of other people's networks, beside plain `quantize-static`; and how stable rankings are.

    python benchmarks/sensitivity.py FOLDER [--only yunet,ultraface] [--min-sqnr 20] [--samples 64] [--target T] [--out rows.json]
    python benchmarks/sensitivity.py --rank MODEL --data FILE.npz [--few 64] [--many 1000]

The first makes plausible inputs as `int8_corpus.py` does, gives each network a child process, simplifies it, and tells
for both ways the signal-to-noise ratio of the worst output on samples that neither calibration nor ranking saw, and the
speed against the float model. The second tells the rank correlation (Spearman) of layers measured on few and on many samples.
"""

from __future__ import annotations

import argparse
import functools
import json
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import numpy as np
from int8_corpus import generated

_LIMIT_SECONDS = 900
_SECONDS = 5.0
"""For one latency comparison; a busy machine needs more than the pass's own default."""


def _ranks(values: list[float]) -> np.ndarray:
    """Return the rank of every value, the mean rank for ties."""
    array = np.asarray(values)
    return np.array([(array < value).sum() + ((array == value).sum() - 1) / 2 for value in array])


def spearman(one: list[float], two: list[float]) -> float:
    """Return the rank correlation of two lists."""
    return float(np.corrcoef(_ranks(one), _ranks(two))[0, 1])


def rank(model: str, data: str, few: int, many: int) -> dict[str, Any]:
    """Rank layers on few and on many samples, and compare."""
    from graphopt.sensitivity import analyse

    found = []
    for samples in (few, many):
        start = time.perf_counter()
        done = analyse(model, data, samples=samples, seconds=0)
        found.append(({layer.name: layer.sqnr for layer in done.layers}, done, time.perf_counter() - start))
    names = list(found[0][0])
    ratios = [[ratios[name] for name in names] for ratios, _, _ in found]
    return {
        "layers": len(names),
        "spearman": round(spearman(*ratios), 4),
        "same_worst_five": len({*names[:5]} & {*list(found[1][0])[:5]}),
        "seconds": [round(seconds, 1) for _, _, seconds in found],
        "predicted": [round(min(o.predicted for o in done.outputs), 2) for _, done, _ in found],
        "measured": [round(min(o.measured for o in done.outputs), 2) for _, done, _ in found],
    }


def sweep_one(path: str, shapes: dict[str, Any], least: float, samples: int, where: str) -> dict[str, Any]:
    """Quantize a network in both ways and say what came of it."""
    from graphopt import io, pipeline, runtime, spec, target
    from graphopt.data import FactoryData
    from graphopt.errors import UserError
    from graphopt.fidelity import Fidelity
    from graphopt.latency import compare_latency
    from graphopt.passbase import PreconditionError

    place = target.find(where)
    model = io.load(path)
    spec.build("simplify", {})(model)
    ports = runtime.model_inputs(model)
    batches = generated(ports, shapes, samples)
    count = sum(len(next(iter(feeds.values()))) for feeds, _ in batches)
    data = FactoryData("generated", lambda: batches)
    session = runtime.open_session(model, place)
    held = Fidelity(session, data, ports, samples=count // 2, skip=count // 2)

    def measured(made: Any) -> dict[str, Any]:
        opened = (functools.partial(runtime.open_session, one, place) for one in (model, made))
        timing = compare_latency(*opened, feeds=batches[0][0], batch=1, seconds=_SECONDS)
        return {
            "sqnr": round(held.worst(runtime.open_session(made, place)), 1),
            "speedup": round(timing.speedup, 2),
            "ci95": [round(x, 2) for x in timing.ci95],
        }

    plain = pipeline.duplicate(model)
    spec.build("calibrate", {"data": data, "samples": count // 2})(plain)
    try:
        spec.build("quantize-static", {})(plain)
    except PreconditionError as reason:
        return {"refused": str(reason)}
    row: dict[str, Any] = {"plain": measured(plain)}
    mixed = pipeline.duplicate(model)
    asked = {"min_sqnr": least, "samples": count // 2, "target": where, "seconds": _SECONDS}
    start = time.perf_counter()
    try:
        done = spec.build("mix-precision", {**asked, "data": data})(mixed)
    except PreconditionError as reason:
        cause = reason.__cause__
        if cause is not None and not isinstance(cause, UserError):
            return {**row, "bug": traceback.format_exception(cause)[-3:]}
        row["refused"] = str(cause or reason)
    else:
        row["mixed"] = {**measured(mixed), "report": done.report}
    return {**row, "seconds": round(time.perf_counter() - start, 1)}


def main() -> None:
    """Print a row for each network, or the rank correlation."""
    if sys.argv[1] == "--child":
        print(
            json.dumps(
                sweep_one(sys.argv[2], json.loads(sys.argv[3]), float(sys.argv[4]), int(sys.argv[5]), sys.argv[6])
            )
        )
        return
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--rank", metavar="MODEL")
    parser.add_argument("--data")
    parser.add_argument("--few", type=int, default=64)
    parser.add_argument("--many", type=int, default=1000)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--only", default="")
    parser.add_argument("--min-sqnr", type=float, default=20.0)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--target", default="cpu")
    args = parser.parse_args()
    if args.rank:
        print(json.dumps(rank(args.rank, args.data, args.few, args.many), indent=2))
        return
    known = args.folder.parent / "inputs.json"
    shapes = json.loads(known.read_text()) if known.exists() else {}
    rows = []
    wanted = args.only.split(",")
    for file in sorted(f for f in args.folder.glob("*.onnx") if any(word in f.name for word in wanted)):
        command = [sys.executable, __file__, "--child", str(file), json.dumps(shapes.get(file.stem, {}))]
        command += [str(args.min_sqnr), str(args.samples), args.target]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_LIMIT_SECONDS)
            lines = done.stdout.splitlines()
            row = json.loads(lines[-1]) if not done.returncode else {"crash": done.stderr.splitlines()[-1:]}
        except subprocess.TimeoutExpired:
            row = {"crash": "took too long"}
        rows.append({"file": file.name, **row})
        print(json.dumps(rows[-1]), flush=True)
        if args.out:
            args.out.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
