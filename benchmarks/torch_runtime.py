"""Which networks does the torch runtime execute like ONNX Runtime, and does a training step come back right?

    python benchmarks/torch_runtime.py FOLDER [--train] [-o rows.json]

Each .onnx file of FOLDER runs in a process of its own, on generated inputs, in both runtimes. With --train, one step of
SGD towards an output of zeros is taken and written back: nothing but the trained initializers may have changed, and
ONNX Runtime has to compute what the module does.
"""

from __future__ import annotations

import argparse
import collections
import json
import subprocess
import sys
from pathlib import Path

import numpy as np

_LIMIT = 300
_CLOSE = 60.0
"""Signal-to-noise ratio in dB from which on outputs count as equal; where it is less, both are compared in float64."""


def examine(path: Path, train: bool) -> dict[str, object]:
    """Compare both runtimes on one model."""
    import torch

    from graphopt import inputs, io, registry, runtime
    from graphopt.runtime import ExecutionError
    from graphopt.target import find
    from graphopt.training import roles
    from graphopt.training.evaluation import write_back

    model = io.load(path)
    torch_runtime = registry.find("runtime", "torch")()
    missing = torch_runtime.unsupported(model)
    domains = {node.domain for node in io.nodes(model)} - {"", "ai.onnx"}
    if missing:
        return {
            "result": "not supported",
            "why": "; ".join(f"{n} {w}" for n, w in missing[:3]),
            "domains": sorted(domains),
        }
    try:
        session = runtime.open_session(model, find("cpu{level=none}"))
        feeds = inputs.generate(model, session, 0)[0]
    except ExecutionError as error:
        return {"result": "not run by ONNX Runtime", "why": str(error)[:200]}
    expected = session.run(feeds)
    actual = runtime.open_session(model, find("torch")).run(feeds)
    row: dict[str, object] = {"result": "equal", "sqnr": sqnr(expected, actual)}
    if row["sqnr"] < _CLOSE:  # type: ignore[operator]
        row["result"] = "differs"
    names = roles.trainable(model) if train else []
    if not names:
        return row
    module = torch_runtime.module(model, names)
    module.mode.batchnorm = "frozen"
    made = module({name: torch.from_numpy(array.copy()) for name, array in feeds.items()})
    outputs = [x for x in made.values() if isinstance(x, torch.Tensor) and x.requires_grad]
    if not outputs or not module.weights():
        return {**row, "step": "no output has a gradient"}
    loss = sum(x.float().square().mean() for x in outputs)
    loss.backward()
    norm = max(float(p.grad.norm()) for p in module.parameters() if p.grad is not None)
    with torch.no_grad():
        for weight in module.parameters():
            if weight.grad is not None:
                weight -= weight.grad * (1e-3 / max(norm, 1e-6))
    candidate = model.clone()
    write_back(candidate, {name: array for name, array in module.arrays().items() if name in module.weights()})
    before, after = io.to_proto(model), io.to_proto(candidate)
    changed = {b.name for a, b in zip(before.graph.initializer, after.graph.initializer, strict=True) if a != b}
    del before.graph.initializer[:], after.graph.initializer[:]
    with torch.no_grad():
        trained = module({name: torch.from_numpy(array.copy()) for name, array in feeds.items()})
    new = runtime.open_session(candidate, find("cpu{level=none}")).run(feeds)
    mine = {name: x.numpy() for name, x in trained.items() if isinstance(x, torch.Tensor)}
    moved = sum(p.grad is not None for p in module.parameters())
    ok = before == after and changed <= set(module.weights())
    step = "right" if ok and changed else "every gradient is zero" if ok and not norm else "wrong"
    return {**row, "step": step, "weights": moved, "after": sqnr(new, mine)}


def sqnr(expected: dict[str, np.ndarray], actual: dict[str, np.ndarray]) -> float:
    """Return the smallest signal-to-noise ratio over all outputs, in dB; whole numbers and text must be equal."""
    worst = 300.0
    for name, wanted in expected.items():
        got = actual[name]
        if wanted.shape != got.shape or wanted.dtype != got.dtype:
            return -300.0
        if wanted.dtype.kind != "f":
            worst = min(worst, 300.0 if np.array_equal(wanted, got) else -300.0)
            continue
        same = np.isfinite(wanted)
        if not np.array_equal(same, np.isfinite(got)):
            return -300.0
        signal, noise = wanted[same].astype(float), got[same].astype(float)
        error = np.square(signal - noise).sum()
        if error:
            worst = min(worst, float(10 * np.log10(max(np.square(signal).sum(), 1e-300) / error)))
    return round(worst, 1)


def main() -> None:
    """Run all files, or one of them in this process."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("path", type=Path)
    parser.add_argument("--train", action="store_true")
    parser.add_argument("-o", "--output", type=Path)
    args = parser.parse_args()
    if args.path.is_file():
        print(json.dumps(examine(args.path, args.train)))
        return
    rows = {}
    for path in sorted(args.path.glob("*.onnx")):
        command = [sys.executable, "-W", "ignore", __file__, str(path), *(["--train"] if args.train else [])]
        try:
            ran = subprocess.run(command, capture_output=True, text=True, timeout=_LIMIT, check=False)
            row = json.loads(ran.stdout.splitlines()[-1]) if ran.returncode == 0 else {}
            rows[path.stem] = row or {"result": "failed", "why": (ran.stderr.splitlines() or ["killed"])[-1][:300]}
        except subprocess.TimeoutExpired:
            rows[path.stem] = {"result": "failed", "why": f"took longer than {_LIMIT} s"}
        print(path.stem, rows[path.stem], flush=True)
    print(collections.Counter(row["result"] for row in rows.values()))
    print(collections.Counter(row["step"] for row in rows.values() if "step" in row))
    if args.output:
        args.output.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
