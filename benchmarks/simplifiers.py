"""`graphopt simplify` beside the other simplifiers: nodes, whole-command time, and whether outputs stay equal.

    python benchmarks/simplifiers.py MODEL_OR_FOLDER... [--peers PYTHON] [--tools NAME...] [--max-growth BYTES] [--out rows.json] [--table table.md]

`--peers` is the Python of an environment that holds onnxsim, onnxslim, onnxoptimizer, onnxscript and onnxruntime; by
default the one that runs this script. Every tool runs as its own command with its defaults, in a process of its own with a
time limit, all tools on one model one after the other. Nodes are counted in bodies and functions too, without
Constant, which is an initializer by another name. What a tool wrote is run in ONNX Runtime (no further optimization)
beside the model as it was, on the inputs of `inputs.json` beside the folder or on seeded random ones. An existing
`--out` is read first: rows of tools that are not asked for are kept.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

LIMIT_SECONDS = 300
RTOL = 1e-3
BIN = Path(sys.executable).parent
OURS = "graphopt"
_IR = "import sys, onnx_ir as ir; m = ir.load(sys.argv[1]); "
_ORT = (
    "import sys, onnxruntime as o; s = o.SessionOptions(); s.log_severity_level = 3; "
    "s.graph_optimization_level = o.GraphOptimizationLevel.ORT_ENABLE_BASIC; "
    "s.optimized_model_filepath = sys.argv[2]; o.InferenceSession(sys.argv[1], s, providers=['CPUExecutionProvider'])"
)


def commands(peers: str, growth: int | None = None) -> dict[str, list[str]]:
    """Return the command of every tool, with places for input and output."""
    folder = Path(peers).parent
    limit = [] if growth is None else ["--max-growth", str(growth)]
    return {
        OURS: [str(BIN / "graphopt"), "simplify", "{in}", "-o", "{out}", *limit],
        "onnxsim": [str(folder / "onnxsim"), "{in}", "{out}"],
        "onnxslim": [str(folder / "onnxslim"), "{in}", "{out}"],
        "onnxoptimizer": [peers, "-m", "onnxoptimizer", "{in}", "{out}"],
        "onnxscript": [
            peers, "-c",
            _IR + "import onnxscript.optimizer as o; o.optimize(m); ir.save(m, sys.argv[2])", "{in}", "{out}",
        ],
        "ort basic": [peers, "-c", _ORT, "{in}", "{out}"],
    }  # fmt: skip


def count(path: Path) -> int:
    """Return the nodes of a model but for Constants."""
    import onnx_ir as ir

    from graphopt import io

    return sum(not (node.domain == "" and node.op_type == "Constant") for node in io.nodes(ir.load(path)))


def equal(before: str, after: str, shapes: dict[str, Any]) -> str | None:
    """Return how two models differ on the same inputs; None when they do not, "not run" when the first does not run."""
    import numpy as np

    from graphopt import compare, inputs, io, runtime, target

    place = target.find("cpu{level=none}")
    model = io.load(before)
    try:
        session = runtime.open_session(model, place)
        if shapes:
            rng = np.random.default_rng(1)
            types = {port.name: port.dtype.numpy() for port in runtime.model_inputs(model) if port.dtype}
            draw = {"normal": rng.standard_normal, "uniform01": rng.random}
            feeds = [{
                name: np.asarray(draw.get(s["kind"], lambda shape: rng.integers(0, 2, shape))(s["shape"])).astype(types[name])
                for name, s in shapes.items() if name in types
            }]  # fmt: skip
        else:
            feeds = inputs.generate(model, session, 1)
        expected = [session.run(f) for f in feeds]
        if compare.first_mismatch(expected[0], session.run(feeds[0]), 0.0):
            return "not run: not deterministic"
    except Exception as error:  # the model as it was does not run
        return f"not run: {str(error)[:100]}"
    try:
        other = runtime.open_session(io.load(after), place)
        for f, reference in zip(feeds, expected, strict=True):
            wrong = compare.first_mismatch(reference, other.run(f), RTOL)
            if wrong:
                return wrong
    except Exception as error:  # what the tool wrote is broken
        return f"broken: {str(error)[:150]}"
    return None


def run(tool: str, command: list[str], model: Path, shapes: dict[str, Any]) -> dict[str, Any]:
    """Run one tool on one model."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.onnx"
        words = [word.replace("{in}", str(model)).replace("{out}", str(out)) for word in command]
        start = time.perf_counter()
        try:
            done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=LIMIT_SECONDS)
            failure = "" if out.exists() else f"exit {done.returncode}: {(done.stderr or done.stdout).strip()[-200:]}"
        except subprocess.TimeoutExpired:
            failure = f"over {LIMIT_SECONDS} s"
        seconds = time.perf_counter() - start
        if failure:
            return {"failed": failure, "seconds": seconds}
        words = [sys.executable, __file__, "--child", str(model), str(out), json.dumps(shapes)]
        try:
            done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=LIMIT_SECONDS)
            facts = json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else {"failed": done.stderr[-200:]}
        except subprocess.TimeoutExpired:
            facts = {"failed": "the comparison took too long"}
        return {**facts, "seconds": seconds, "bytes": sum(f.stat().st_size for f in Path(folder).iterdir())}


def table(rows: dict[str, dict[str, Any]], tools: list[str]) -> str:
    """Return the rows and what they add up to as Markdown."""
    text = f"| model | before | {' | '.join(tools)} |\n|---|---|{'---|' * len(tools)}\n"
    for name, row in sorted(rows.items()):
        cells = []
        for tool in tools:
            cell = row.get(tool, {})
            mark = f" ({cell['differs'][:40]})" if cell.get("differs") and "not run" not in cell["differs"] else ""
            cells.append(f"{cell['nodes']}{mark}" if "nodes" in cell else "fails" if cell else "")
        text += f"| {name} | {row['before']} | {' | '.join(cells)} |\n"
    lines = [text]
    for tool in tools:
        cells = [row[tool] for row in rows.values() if tool in row]
        good = [cell for cell in cells if "nodes" in cell and not (cell["differs"] or "").replace("not run", "")]
        wrong = sum(bool(c.get("differs")) and "not run" not in c["differs"] for c in cells)
        seconds = statistics.median(cell["seconds"] for cell in cells) if cells else 0.0
        lines.append(
            f"{tool}: {len(cells)} models, {len(cells) - sum('nodes' in c for c in cells)} failed, {wrong} with other "
            f"outputs, median {seconds:.2f} s, {len(good)} equal"
        )
    fewer, equal_, more = [], 0, []
    for name, row in rows.items():
        if "nodes" not in row.get(OURS, {}):
            continue
        best = min((c["nodes"] for t, c in row.items() if t in tools and t != OURS and usable(c)), default=None)
        if best is None or row[OURS]["nodes"] < best:
            fewer.append(name)
        elif row[OURS]["nodes"] == best:
            equal_ += 1
        else:
            more.append(f"{name} {row[OURS]['nodes']} against {best}")
    lines.append(
        f"{OURS} against the best other with equal outputs: fewer {len(fewer)}, equal {equal_}, more {len(more)}"
    )
    lines += [f"  more: {line}" for line in more]
    return "\n".join(lines)


def usable(cell: dict[str, Any]) -> bool:
    """Tell whether a tool's result counts: written, and not shown to compute something else."""
    return "nodes" in cell and (cell["differs"] is None or "not run" in cell["differs"])


def main() -> None:
    """Run the tools and print the table."""
    if sys.argv[1] == "--child":
        model, out, shapes = sys.argv[2:]
        print(json.dumps({"nodes": count(Path(out)), "differs": equal(model, out, json.loads(shapes))}))
        return
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("models", type=Path, nargs="+")
    parser.add_argument("--peers", default=sys.executable)
    parser.add_argument("--tools", nargs="+")
    parser.add_argument("--max-growth", type=int, help="of graphopt simplify; others fold constants of any size")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--table", type=Path)
    args = parser.parse_args()
    tools = commands(args.peers, args.max_growth)
    rows: dict[str, dict[str, Any]] = json.loads(args.out.read_text()) if args.out and args.out.exists() else {}
    for path in args.models:
        known = path.parent / "inputs.json"
        shapes = json.loads(known.read_text()) if known.exists() else {}
        for model in sorted(path.glob("*.onnx")) if path.is_dir() else [path]:
            row = rows.setdefault(model.stem, {"before": count(model)})
            for tool in args.tools or tools:
                row[tool] = run(tool, tools[tool], model, shapes.get(model.stem, {}))
            print(
                model.stem, row["before"], {t: row[t].get("nodes", "failed") for t in args.tools or tools}, flush=True
            )
            if args.out:
                args.out.write_text(json.dumps(rows, indent=1))
    text = table(rows, [tool for tool in tools if any(tool in row for row in rows.values())])
    print(text)
    if args.table:
        args.table.write_text(text)


if __name__ == "__main__":
    main()
