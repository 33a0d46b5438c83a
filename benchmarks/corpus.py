"""Run `graphopt optimize` without data over a folder of ONNX files and count what comes of it.

    python benchmarks/corpus.py FOLDER [--out corpus.json] [--jobs 2] [--only TEXT]

Every file gets two child processes, because some files crash ONNX Runtime. The first tells whether ONNX
Runtime loads and runs the input, and the second runs `graphopt optimize` and compares the outputs of both
files on fresh random inputs with a seed the optimizer did not see. A file named like the entry of
`inputs.json` beside the folder uses the shapes given there.
"""

from __future__ import annotations

import argparse
import collections
import concurrent.futures
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

LIMIT_SECONDS = 300


def probe(path: str, shapes: dict[str, Any]) -> dict[str, Any]:
    """Tell whether ONNX Runtime loads a file and runs it on some inputs."""
    session, feeds = _open(path, shapes)
    return {
        "runs": bool(feeds),
        "why": "" if feeds else "no generated inputs make it run",
        "outputs": len(session.run(feeds[0])) if feeds else 0,
    }


def compare(path: str, shapes: dict[str, Any]) -> dict[str, Any]:
    """Optimize a file through the command line and compare what the two files compute."""
    from graphopt import compare as numbers

    with tempfile.TemporaryDirectory() as folder:
        out = str(Path(folder) / "out.onnx")
        done = subprocess.run(
            [sys.executable, "-m", "graphopt", "optimize", path, "-o", out, "--json"],
            capture_output=True, text=True, check=False, timeout=LIMIT_SECONDS,
        )  # fmt: skip
        if "Traceback" in done.stderr or done.returncode not in (0, 1, 3):
            return {"result": "crash", "why": done.stderr.strip().splitlines()[-1:] or [done.returncode]}
        if done.returncode == 1:
            return {"result": "refused", "why": done.stderr.strip()}
        report = json.loads(done.stdout)
        bugs = [f"{s['pass']}: {s['reason']}" for s in report["steps"] if s["reason"].startswith("bug")]
        facts = {
            "exit": done.returncode,
            "nodes": report["nodes"],
            "bytes": report["bytes"],
            "speedup": report["latency"] and report["latency"]["speedup"],
            "reverted": [f"{s['pass']}: {s['reason']}" for s in report["steps"] if s["status"] == "reverted"],
            "notes": report["notes"],
        }
        if bugs:
            return {"result": "bug", "why": bugs, **facts}
        if report["latency"] is None:
            return {"result": "left as it was", "why": report["notes"], **facts}
        session, feeds = _open(path, shapes)
        other = _session(out)
        for f in feeds:
            wrong = numbers.first_mismatch(session.run(f), other.run(f), 1e-3)
            if wrong:
                return {"result": "differs", "why": wrong, **facts}
        return {"result": "equal" if feeds else "equal on the optimizer's inputs", **facts}


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


def child(action: str, path: Path, shapes: dict[str, Any]) -> dict[str, Any]:
    """Run one action in a process of its own; a crash of that process is a result too."""
    try:
        done = subprocess.run(
            [sys.executable, __file__, "--child", action, str(path), json.dumps(shapes)],
            capture_output=True, text=True, check=False, timeout=2 * LIMIT_SECONDS,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return {"result": "timeout", "why": f"over {2 * LIMIT_SECONDS} s"}
    if done.returncode:
        return {"result": "crash", "why": done.stderr.strip().splitlines()[-1:] or [f"exit {done.returncode}"]}
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def one(path: Path, shapes: dict[str, Any]) -> dict[str, Any]:
    """Probe a file and, if it runs, optimize it."""
    row = child("probe", path, shapes)
    if not row.get("runs"):
        answer = child("compare", path, {})
        clean = answer["result"] != "crash" and answer["result"] != "bug"
        return {
            "file": path.name,
            "result": "not run by ONNX Runtime" if clean else answer["result"],
            "why": row.get("why"),
            "optimize": answer,
        }
    return {"file": path.name, **child("compare", path, shapes)}


def main() -> None:
    """Sweep the folder and print counts."""
    if sys.argv[1] == "--child":
        action, path, shapes = sys.argv[2:]
        print(json.dumps({"probe": probe, "compare": compare}[action](path, json.loads(shapes))))
        return
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, help="write one JSON row per file")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only", default="", help="files whose name contains this")
    args = parser.parse_args()
    known = args.folder.parent / "inputs.json"
    shapes = json.loads(known.read_text()) if known.exists() else {}
    files = sorted(f for f in args.folder.glob("*.onnx") if args.only in f.name)
    with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
        rows = list(pool.map(lambda f: one(f, shapes.get(f.stem, {})), files))
    if args.out:
        args.out.write_text(json.dumps(rows, indent=1))
    for result, count in collections.Counter(row["result"] for row in rows).most_common():
        print(f"{count:5} {result}")
    for row in rows:
        if row["result"] in ("crash", "bug", "differs", "timeout"):
            print(f"{row['file']}: {row['result']}: {row['why']}")


if __name__ == "__main__":
    main()
