"""Run `graphopt optimize` without data over a folder of ONNX files and count what comes of it.

    python benchmarks/corpus.py FOLDER [--out corpus.json] [--jobs 2] [--only TEXT]

Every file gets a child process, because some crash ONNX Runtime. The child tells whether ONNX Runtime loads
and runs the input, optimizes it, and compares what both files compute on random inputs of a seed that the
optimizer did not see. If `inputs.json` beside the folder has an entry for the file, its shapes are used.
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
import traceback
from pathlib import Path
from typing import Any

LIMIT_SECONDS = 300
BAD = ("crash", "traceback", "bug in a pass", "differs", "timeout")


def sweep_one(path: str, shapes: dict[str, Any]) -> dict[str, Any]:
    """Optimize a file and say what came of it."""
    from graphopt import compare, optimize
    from graphopt.errors import UserError
    from graphopt.runtime import ExecutionError

    try:
        session, feeds = _open(path, shapes)
        runs = bool(feeds)
    except (UserError, ExecutionError):
        session, feeds, runs = None, [], False
    print(json.dumps({"runs": runs}), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        out = str(Path(folder) / "out.onnx")
        try:
            report = optimize(path, out)
        except UserError as error:
            return {"result": "refused" if runs else "refused, and ONNX Runtime does not run it", "why": str(error)}
        except Exception:  # what this benchmark looks for
            return {"result": "traceback", "why": traceback.format_exc().splitlines()[-3:]}
        facts = {
            "met": report.met,
            "nodes": report.nodes,
            "bytes": report.bytes,
            "speedup": report.latency and report.latency.speedup,
            "ci95": report.latency and report.latency.ci95,
            "reverted": [f"{s.spec}: {s.reason}" for s in report.steps if s.status == "reverted"],
            "notes": report.notes,
        }
        bugs = [row for row in facts["reverted"] if "bug in this pass" in row]
        if bugs:
            return {"result": "bug in a pass", "why": bugs, **facts}
        if report.latency is None:
            return {"result": "left as it was, explained", "why": report.notes, **facts}
        if not report.met:
            return {"result": "gate not met", **facts}
        other = _session(out)
        for f in feeds:
            wrong = compare.first_mismatch(session.run(f), other.run(f), 1e-3)
            if wrong:
                return {"result": "differs", "why": wrong, **facts}
        return {"result": "optimized, equal outputs" if feeds else "optimized after repair", **facts}


def _session(path: str) -> Any:
    from graphopt import io, runtime, target

    return runtime.open_session(io.load(path), target.find("cpu"))


def _open(path: str, shapes: dict[str, Any]) -> tuple[Any, list[Any]]:
    """Return a session and inputs on which it runs (none if nothing works)."""
    import numpy as np

    from graphopt import inputs, io, runtime

    model = io.load(path)
    session = _session(path)
    if shapes:
        rng = np.random.default_rng(1)
        types = {port.name: port.dtype.numpy() for port in runtime.model_inputs(model) if port.dtype}
        draw = {"normal": rng.standard_normal, "uniform01": rng.random}
        feeds = {}
        for name, spec in shapes.items():
            make = draw.get(spec["kind"], lambda shape: rng.integers(0, 2, shape))
            feeds[name] = np.asarray(make(spec["shape"])).astype(types.get(name, np.float32))
        try:
            session.run(feeds)
        except runtime.ExecutionError:
            pass
        else:
            return session, [feeds]
    try:
        return session, inputs.generate(model, session, 1)
    except inputs.CannotGenerate:
        return session, []


def child(path: Path, shapes: dict[str, Any]) -> dict[str, Any]:
    """Sweep one file in a process of its own; a crash of that process is a result too."""
    start = time.perf_counter()
    command = [sys.executable, __file__, "--child", str(path), json.dumps(shapes)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=LIMIT_SECONDS)
    except subprocess.TimeoutExpired:
        return {"file": path.name, "result": "timeout", "why": f"over {LIMIT_SECONDS} s"}
    lines = done.stdout.splitlines()
    if done.returncode == 0 and len(lines) > 1:
        row = json.loads(lines[-1])
    elif not lines:
        row = {"result": "ONNX Runtime crashes on it", "why": f"exit {done.returncode}"}
    else:
        row = {"result": "crash", "why": done.stderr.strip().splitlines()[-1:] or f"exit {done.returncode}"}
    return {"file": path.name, **row, "seconds": round(time.perf_counter() - start, 1)}


def main() -> None:
    """Sweep the folder and print counts."""
    if sys.argv[1] == "--child":
        print(json.dumps(sweep_one(sys.argv[2], json.loads(sys.argv[3]))))
        return
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, help="write one JSON row per file, as they end")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only", default="", help="files whose name contains this")
    args = parser.parse_args()
    known = args.folder.parent / "inputs.json"
    shapes = json.loads(known.read_text()) if known.exists() else {}
    files = sorted(f for f in args.folder.glob("*.onnx") if args.only in f.name)
    rows = []
    with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
        for row in pool.map(lambda f: child(f, shapes.get(f.stem, {})), files):
            rows.append(row)
            if args.out:
                args.out.write_text("".join(json.dumps(r) + "\n" for r in rows))
    for result, count in collections.Counter(row["result"] for row in rows).most_common():
        print(f"{count:5} {result}")
    for row in rows:
        if row["result"] in BAD:
            print(f"{row['file']}: {row['result']}: {row['why']}")


if __name__ == "__main__":
    main()
