"""Batch change: a fixed batch becomes dynamic, and is fixed again.

    python benchmarks/batch.py FOLDER [--out rows.json] [--only TEXT] [--jobs 2]

Each model, in a child process: `make-dynamic`, which the pipeline verifies at 1, 2, 3 and 5 samples against the model one
by one, then `set-shape` back to the old size, whose outputs are compared with those of the model as it was. Weights
listed as inputs are frozen first. A model that is refused gets a second chance after `convert-opset{to=13}`, and a third
after `simplify`. A model with a dynamic batch is first fixed at 1 and simplified, so that the size is baked into its
constants. Printed are counts, and the reasons for the rest.
"""

from __future__ import annotations

import argparse
import collections
import concurrent.futures
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

LIMIT_SECONDS = 300
RTOL = 1e-4
CHANCES = ([], ["convert-opset{to=13}"], ["convert-opset{to=13}", "simplify"])
"""What is done to a model before."""


def change(path: str) -> dict[str, Any]:
    """Change one model there and back; return what came of it."""
    from graphopt import inputs, io, runtime, target
    from graphopt.errors import UserError

    place = target.find("cpu")
    try:
        model = io.load(path)
        session = runtime.open_session(model, place)
        inputs.generate(model, session, 1)
    except Exception as error:  # whatever keeps the model as it is from running
        return {"result": "does not run as it is", "why": str(error)[:120]}
    ports = [port for port in runtime.model_inputs(model) if port.shape]
    loose = [port for port in ports if port.shape and not isinstance(port.shape[0], int)]
    with tempfile.TemporaryDirectory() as folder:
        kind, start = "fixed batch", path
        if not ports:
            return {"result": "no input with an axis"}
        try:
            if loose:
                kind, start = "dynamic batch, fixed at 1 before", str(Path(folder) / "one.onnx")
                axes = ",".join(f"{port.name}:0=1" for port in loose)
                run(path, [f"set-shape{{axes='{axes}'}}", "simplify"], start)
            elif any(value.is_initializer() for value in model.graph.inputs):
                start = str(Path(folder) / "frozen.onnx")
                run(path, ["freeze-defaults"], start)
        except UserError as error:
            return {"result": "cannot be fixed", "why": str(error)[:160]}
        whys = []
        for before in CHANCES:
            try:
                outputs = there_and_back(start, before, folder)
            except UserError as error:
                whys.append(str(error)[:200])
            else:
                after = f", after {' and '.join(before)}" if before else ""
                return {"result": f"{kind}: dynamic and back, equal{after}", "outputs": outputs}
        return {"result": f"{kind}: refused", "why": whys[0], "whys": whys}


def there_and_back(path: str, before: Sequence[str], folder: str) -> dict[str, str]:
    """Make the batch dynamic and fix it again; return the dynamic shapes of the outputs.

    Raises:
        UserError: it is refused, or the outputs differ.
    """
    from graphopt import compare, inputs, io, runtime, target
    from graphopt.errors import UserError

    place = target.find("cpu")
    model = io.load(path)
    size = next(port.shape[0] for port in runtime.model_inputs(model) if port.shape)
    dynamic, fixed = (str(Path(folder) / name) for name in ("dynamic.onnx", "fixed.onnx"))
    steps = run(path, [*before, "make-dynamic"], dynamic)
    run(dynamic, [f"set-shape{{axes=batch={size}}}"], fixed)
    old, new = runtime.open_session(model, place), runtime.open_session(io.load(fixed), place)
    for feeds in inputs.generate(model, old, 1):
        wrong = compare.first_mismatch(old.run(feeds), new.run(feeds), RTOL)
        if wrong:
            raise UserError(f"differs after all: {wrong}")
    shapes: dict[str, str] = steps[-1].report["outputs"]
    return shapes


def run(path: str, passes: Sequence[str], out: str) -> Sequence[Any]:
    """Apply passes of which the last must be kept; return the steps.

    Raises:
        UserError: it is not.
    """
    from graphopt import apply
    from graphopt.errors import UserError

    steps = apply(path, list(passes), out).steps
    if steps[-1].status != "kept" and steps[-1].reason != "nothing to do":
        raise UserError(steps[-1].reason)
    return steps


def child(path: Path) -> dict[str, Any]:
    """Change one model in a process of its own."""
    command = [sys.executable, __file__, "--child", str(path)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=LIMIT_SECONDS)
    except subprocess.TimeoutExpired:
        return {"result": "timeout"}
    if done.returncode:
        return {"result": "crash", "why": done.stderr.strip()[-200:]}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Sweep a folder."""
    if sys.argv[1] == "--child":
        print(json.dumps(change(sys.argv[2])))
        return
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--only", default="")
    parser.add_argument("--jobs", type=int, default=2)
    args = parser.parse_args()
    files = [path for path in sorted(args.folder.glob("*.onnx")) if args.only in path.name]
    rows: dict[str, dict[str, Any]] = {}
    with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
        for path, row in zip(files, pool.map(child, files), strict=True):
            rows[path.stem] = row
            if args.out:
                args.out.write_text(json.dumps(rows, indent=1))
    for result, count in collections.Counter(row["result"] for row in rows.values()).most_common():
        print(f"{count:5} {result}")
    for name, row in rows.items():
        if "why" in row:
            print(f"{name}: {row['result']}: {row['why']}")


if __name__ == "__main__":
    main()
