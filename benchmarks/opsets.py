"""Convert a folder of ONNX files to opset 21 and the result to 13, with graphopt and with onnx's own converter.

    python benchmarks/opsets.py FOLDER [--out opsets.json] [--jobs 2] [--only TEXT] [--opsets 21,13]
                                [--converters graphopt,onnx]

Every file and converter gets a child process, because some crash. What comes of each step is compared with what the
file itself computes in ONNX Runtime on the same random inputs, to the tolerance of an exact pass. If `inputs.json`
beside the folder has an entry for the file, its shapes are used. Files that ONNX Runtime does not run are converted,
but not counted as equal.
"""

from __future__ import annotations

import argparse
import collections
import concurrent.futures
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt import compare, inputs, io, runtime, target
from graphopt.errors import UserError
from graphopt.passbase import EXACT, PreconditionError
from graphopt.passes.precision.convert_opset import ConvertOpset
from graphopt.runtime import ExecutionError

LIMIT_SECONDS = 300


def by_graphopt(model: ir.Model, to: int) -> ir.Model:
    """Convert with graphopt."""
    made: ir.Model = ConvertOpset(to)(model.clone()).model
    return made


def by_onnx(model: ir.Model, to: int) -> ir.Model:
    """Convert with onnx."""
    from onnx import version_converter

    return ir.from_proto(version_converter.convert_version(io.to_proto(model), to))


CONVERTERS: dict[str, Callable[[ir.Model, int], ir.Model]] = {"graphopt": by_graphopt, "onnx": by_onnx}


def sweep_one(path: str, shapes: dict[str, Any], converter: str, opsets: list[int]) -> list[dict[str, Any]]:
    """Return what came of each step of one file; a step starts from the result of the one before."""
    try:
        model = io.load(path)
    except UserError as error:
        return [{"to": to, "result": "malformed", "why": str(error)} for to in opsets]
    try:
        session = runtime.open_session(model, target.find("cpu"))
        feeds = draw(model, session, shapes)
        expected = [session.run(f) for f in feeds]
        if any(compare.first_mismatch(e, session.run(f), 0.0) for e, f in zip(expected, feeds, strict=True)):
            return [{"to": to, "result": "random numbers: not comparable", "why": ""} for to in opsets]
    except (ExecutionError, inputs.CannotGenerate):
        feeds, expected = [], []
    rows = []
    for to in opsets:
        row = {"from": model.opset_imports.get("", model.opset_imports.get("ai.onnx")), "to": to}
        try:
            model = CONVERTERS[converter](model, to)
            result, why = check(model, feeds, expected)
        except PreconditionError as refusal:
            result, why = "refused", str(refusal)
        except Exception as error:  # onnx raises many kinds; graphopt must not
            result = "refused" if converter == "onnx" else "traceback"
            why = (str(error).strip().splitlines() or [type(error).__name__])[0]
        rows.append({**row, "result": result, "why": why})
        print(json.dumps(rows), flush=True)
        if not result.startswith(("equal", "converted")):
            break
    return rows


def check(model: ir.Model, feeds: list[Any], expected: list[Any]) -> tuple[str, str]:
    """Compare what a converted model computes."""
    if not feeds:
        return "converted, the file itself does not run", ""
    try:
        session = runtime.open_session(model, target.find("cpu"))
        actual = [session.run(f) for f in feeds]
    except ExecutionError as error:
        return "does not run", str(error)
    wrong = (compare.first_mismatch(e, a, EXACT.rtol) for e, a in zip(expected, actual, strict=True))
    why = next(filter(None, wrong), None)
    return ("differs", why) if why else ("equal", "")


def draw(model: ir.Model, session: Any, shapes: dict[str, Any]) -> list[Any]:
    """Return random inputs of known shapes, or of shapes on which the model runs."""
    if not shapes:
        return inputs.generate(model, session, 1)
    rng = np.random.default_rng(1)
    types = {port.name: port.dtype.numpy() for port in runtime.model_inputs(model) if port.dtype}
    kinds = {"normal": rng.standard_normal, "uniform01": rng.random}
    feeds = {}
    for name, spec in shapes.items():
        make = kinds.get(spec["kind"], lambda shape: rng.integers(0, 2, shape))
        feeds[name] = np.asarray(make(spec["shape"])).astype(types.get(name, np.float32))
    return [feeds]


def child(path: Path, shapes: dict[str, Any], converter: str, opsets: str) -> list[dict[str, Any]]:
    """Sweep one file in a process of its own; a crash of that process is a result too."""
    command = [sys.executable, __file__, "--child", str(path), json.dumps(shapes), converter, opsets]
    lines, why = [], f"over {LIMIT_SECONDS} s"
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=LIMIT_SECONDS)
        lines, why = done.stdout.splitlines(), "" if done.returncode == 0 else f"exit {done.returncode}"
    except subprocess.TimeoutExpired as late:
        lines = (late.stdout or b"").decode().splitlines() if isinstance(late.stdout, bytes) else []
    rows: list[dict[str, Any]] = json.loads(lines[-1]) if lines else []
    left = opsets.split(",")[len(rows) :]
    if why and left:
        rows.append({"to": int(left[0]), "result": "crash", "why": why})
    return [{"file": path.name, "converter": converter, **row} for row in rows]


def main() -> None:
    """Sweep the folder and print counts."""
    if sys.argv[1] == "--child":
        path, shapes, converter, opsets = sys.argv[2:]
        print(json.dumps(sweep_one(path, json.loads(shapes), converter, [int(v) for v in opsets.split(",")])))
        return
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, help="write one JSON row per file, converter and step, as they end")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only", default="", help="files whose name contains this")
    parser.add_argument("--opsets", default="21,13", help="versions to convert to, one after the other")
    parser.add_argument("--converters", default=",".join(CONVERTERS), help="which of them, with commas between")
    args = parser.parse_args()
    converters = args.converters.split(",")
    known = args.folder.parent / "inputs.json"
    shapes = json.loads(known.read_text()) if known.exists() else {}
    files = sorted(f for f in args.folder.glob("*.onnx") if args.only in f.name)
    tasks = [(file, converter) for file in files for converter in converters]
    rows: list[dict[str, Any]] = []
    with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
        for some in pool.map(lambda task: child(task[0], shapes.get(task[0].stem, {}), task[1], args.opsets), tasks):
            rows.extend(some)
            if args.out:
                args.out.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for converter in converters:
        for to in map(int, args.opsets.split(",")):
            here = [row for row in rows if row["converter"] == converter and row["to"] == to]
            counts = collections.Counter(row["result"] for row in here)
            print(f"{converter} to opset {to}: " + ", ".join(f"{n} {what}" for what, n in counts.most_common()))
            why = collections.Counter(
                f"{row['result']}: {re.sub(r'[0-9]+', 'N', row['why'])[:150]}" for row in here if row["why"]
            )
            for reason, n in why.most_common(12):
                print(f"    {n:3} {reason}")


if __name__ == "__main__":
    main()
