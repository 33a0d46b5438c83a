"""Batch change: models with a fixed batch become dynamic, and are fixed again.

    python benchmarks/batch.py FOLDER [--out rows.json] [--only TEXT]

Each model, in a child process: `make-dynamic` (verified by the pipeline at 1, 2, 3 and 5 samples; models
below opset 13 are converted to it first), then `set-shape` back
to the old size, whose outputs are compared with those of the model as it was. Printed are counts and reasons.
"""

from __future__ import annotations

import argparse
import collections
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

LIMIT_SECONDS = 240
RTOL = 1e-4


def change(path: str) -> dict[str, Any]:
    """Change one model there and back; return what came of it."""
    from graphopt import apply, compare, inputs, io, runtime, target
    from graphopt.errors import UserError

    place = target.find("cpu")
    model = io.load(path)
    try:
        session = runtime.open_session(model, place)
        feeds = inputs.generate(model, session, 1)
    except Exception as error:  # whatever keeps the model as it is from running
        return {"result": "does not run as it is", "why": str(error)[:120]}
    ports = [port for port in runtime.model_inputs(model) if port.shape]
    size = ports[0].shape[0] if ports and ports[0].shape else None
    if not isinstance(size, int):
        return {"result": "dynamic already"}
    with tempfile.TemporaryDirectory() as folder:
        open_, shut = (str(Path(folder) / name) for name in ("dynamic.onnx", "fixed.onnx"))
        try:
            old = model.opset_imports.get("", 0) < 13
            done = apply(path, [*(["freeze-defaults", "convert-opset{to=13}"] if old else []), "make-dynamic"], open_)
            if not done.met or done.steps[-1].status != "kept":
                return {"result": "refused", "why": done.steps[-1].reason[:160]}
            back = apply(open_, [f"set-shape{{axes=batch={size}}}"], shut)
        except UserError as error:
            return {"result": "refused", "why": str(error)[:160]}
        if not back.met:
            return {"result": "not fixed again", "why": back.steps[-1].reason[:160]}
        other = runtime.open_session(io.load(shut), place)
        for f in feeds:
            wrong = compare.first_mismatch(session.run(f), other.run(f), RTOL)
            if wrong:
                return {"result": "differs", "why": wrong}
        return {"result": "dynamic and back, equal", "outputs": done.steps[-1].report["outputs"]}


def child(path: Path) -> dict[str, Any]:
    """Change one model in a process of its own."""
    try:
        done = subprocess.run(
            [sys.executable, __file__, "--child", str(path)], capture_output=True, text=True, check=False,
            timeout=LIMIT_SECONDS,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return {"result": "timeout"}
    if done.returncode:
        return {"result": "crash", "why": done.stderr.strip()[-160:]}
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
    args = parser.parse_args()
    rows = {}
    for path in sorted(args.folder.glob("*.onnx")):
        if args.only in path.name:
            rows[path.stem] = child(path)
            if args.out:
                args.out.write_text(json.dumps(rows, indent=1))
    for result, count in collections.Counter(row["result"] for row in rows.values()).most_common():
        print(f"{count:5} {result}")
    for name, row in rows.items():
        if "why" in row:
            print(f"{name}: {row['result']}: {row['why']}")


if __name__ == "__main__":
    main()
