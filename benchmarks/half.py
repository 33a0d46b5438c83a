"""Run to-float16 (or to-bfloat16) over a folder of ONNX files and tell what comes of each.

    python benchmarks/half.py FOLDER [--passes PASS...] [--out half.json] [--jobs 2] [--only TEXT]

Weights that an exporter listed as inputs are made constants first (freeze-defaults). `--passes` names other passes, the
last of which is measured: 'to-float16{keep_io=false}', 'to-bfloat16{target=reference}'.

Every file gets the command as a user types it, and a child process that looks at the result: ONNX's checker, ONNX Runtime
at every optimization level, and the error of the outputs on random inputs of a seed that the pass did not see. If
`inputs.json` beside the folder has an entry for the file, its shapes are used there, and given as data where the command
finds no inputs by itself.
"""

from __future__ import annotations

import argparse
import collections
import concurrent.futures
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

LIMIT_SECONDS = 300
LEVELS = ("none", "basic", "extended", "all")
SEED = 7
NO_INPUTS = "does not run on generated inputs"


def drawn(model: Any, shapes: dict[str, Any], seed: int) -> dict[str, Any]:
    """Return inputs of the shapes of `inputs.json`."""
    import numpy as np

    from graphopt import runtime

    rng = np.random.default_rng(seed)
    draw = {"normal": rng.standard_normal, "uniform01": rng.random}
    feeds = {}
    for port in runtime.model_inputs(model):
        shape = shapes[port.name]
        array = np.asarray(draw.get(shape["kind"], lambda size: rng.integers(0, 2, size))(shape["shape"]))
        feeds[port.name] = array.astype(port.dtype.numpy() if port.dtype else np.float32)
    return feeds


def look(before: str, after: str, shapes: dict[str, Any]) -> dict[str, Any]:
    """Check a result and return its faults and its error."""
    import numpy as np
    import onnx

    from graphopt import compare, inputs, io, runtime, target

    model, other = io.load(before), io.load(after)
    faults = []
    try:
        onnx.checker.check_model(io.to_proto(other))
    except Exception as error:
        try:
            onnx.checker.check_model(io.to_proto(model))
            faults.append(f"checker: {str(error)[:200]}")
        except Exception:  # so was the input
            pass
    place = target.find("cpu")
    session = runtime.open_session(model, place)
    feeds = [drawn(model, shapes, SEED)] if shapes else inputs.generate(model, session, SEED)
    worst, agree = np.inf, 1.0
    types = {port.name: port.dtype.numpy() for port in runtime.model_inputs(other) if port.dtype}
    for level in LEVELS:
        try:
            candidate = runtime.open_session(other, target.find(f"cpu{{level={level}}}"))
            for arrays in feeds:
                expected = session.run(arrays)
                actual = candidate.run({name: array.astype(types[name]) for name, array in arrays.items()})
                for name, array in expected.items():
                    if array.shape != actual[name].shape:
                        agree = 0.0
                    elif compare.is_float(array.dtype):
                        worst = min(
                            worst, compare.sqnr(array, actual[name].astype(np.float64)) if array.any() else worst
                        )
                    else:
                        agree = min(agree, float(np.mean(array == actual[name])) if array.size else 1.0)
        except runtime.ExecutionError as error:
            faults.append(f"level {level}: {error}")
    return {"faults": faults, "unseen": min(float(worst), 200.0), "agree": agree}


def convert(path: Path, passes: list[str], shapes: dict[str, Any]) -> dict[str, Any]:
    """Run the command on one file and look at what it wrote."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.onnx"
        command = [str(Path(sys.executable).parent / "graphopt"), "apply", str(path), *passes, "-o", str(out), "--json"]
        try:
            done = _run(command)
            if NO_INPUTS in done.stderr and shapes:
                data = Path(folder) / "data.npz"
                _run([sys.executable, __file__, "--draw", str(path), json.dumps(shapes), str(data)])
                name, _, fields = command[-4].partition("{")
                done = _run([*command[:-4], f"{name}{{data={data} {fields or '}'}", *command[-3:]])
            row: dict[str, Any] = {"file": path.name, "seconds": round(time.perf_counter() - start, 1)}
            if done.returncode not in (0, 3) or not done.stdout:
                return {
                    **row,
                    "result": "crash" if done.returncode != 1 else "refused",
                    "why": done.stderr.strip()[-300:],
                }
            applied = json.loads(done.stdout)
            step = applied["steps"][-1]
            row |= {
                "report": step["report"],
                "bytes": applied["bytes"],
                "why": step["reason"],
                "stays": step["skipped"],
            }
            if step["status"] != "kept":
                return {**row, "result": step["status"]}
            seen = _run([sys.executable, __file__, "--look", str(path), str(out), json.dumps(shapes)])
        except subprocess.TimeoutExpired:
            return {"file": path.name, "result": "timeout", "why": f"over {LIMIT_SECONDS} s"}
        if seen.returncode:
            return {**row, "result": "crash", "why": seen.stderr.strip()[-300:]}
        row |= json.loads(seen.stdout.splitlines()[-1])
        return {**row, "result": "faulty" if row["faults"] else "converted", "why": "; ".join(row["faults"])}


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=LIMIT_SECONDS)


def main() -> None:
    """Sweep the folder and print a table and counts."""
    if sys.argv[1] == "--look":
        print(json.dumps(look(sys.argv[2], sys.argv[3], json.loads(sys.argv[4]))))
        return
    if sys.argv[1] == "--draw":
        import numpy as np

        from graphopt import io

        np.savez(sys.argv[4], **drawn(io.load(sys.argv[2]), json.loads(sys.argv[3]), 0))
        return
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--passes", nargs="+", default=["freeze-defaults", "to-float16"])
    parser.add_argument("--out", type=Path, help="write one JSON row per file, as they end")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only", default="", help="files whose name contains this")
    args = parser.parse_args()
    known = args.folder.parent / "inputs.json"
    shapes = json.loads(known.read_text()) if known.exists() else {}
    files = sorted(f for f in args.folder.glob("*.onnx") if args.only in f.name)
    narrow = args.passes[-1].partition("{")[0].removeprefix("to-")
    rows = []
    print(
        "| model | size | narrow nodes | float32 nodes | casts | dB | dB, unseen inputs | seconds |\n|---|---|---|---|---|---|---|---|"
    )
    with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
        for row in pool.map(lambda f: convert(f, args.passes, shapes.get(f.stem, {})), files):
            rows.append(row)
            if args.out:
                args.out.write_text("".join(json.dumps(r) + "\n" for r in rows))
            if row["result"] in ("converted", "faulty"):
                report, (before, after) = row["report"], row["bytes"]
                print(
                    f"| {row['file']} | {after / before:.2f} | {report[narrow]} | {report['float32']} | {report['casts']} | "
                    f"{report['sqnr']} | {row['unseen']:.1f} | {row['seconds']} | {row['why']}",
                    flush=True,
                )
            else:
                print(f"| {row['file']} | {row['result']}: {row['why']}", flush=True)
    for result, count in collections.Counter(row["result"] for row in rows).most_common():
        print(f"{count:5} {result}")


if __name__ == "__main__":
    main()
