"""What `fuse` makes of networks: nodes, operators, and speed against the same network simplified but not fused.

    python benchmarks/fusion.py MODEL.onnx ... [--only attention] [--batch 1] [--size sequence=64]
        [--target 'cpu{threads=1}'] [--seconds 6] [--out F]

Every model is simplified first (the pass `simplify`), so that the difference is the fusion alone; equal masks that are
built for every layer become one after it (`eliminate-common-subexpressions`). Every step is verified, as the command does
it. Speed is the paired timing of `graphopt bench`, with ONNX Runtime's own optimizations on in both models.
"""

from __future__ import annotations

import argparse
import functools
import json
from pathlib import Path
from typing import Any

from graphopt import inputs, io, runtime, spec, target
from graphopt.errors import UserError
from graphopt.latency import compare_latency
from graphopt.pipeline import Pipeline, begin, feeds_for, measure

_BEFORE = ("repair", "strip-metadata", "simplify")
_AFTER = ("eliminate-common-subexpressions", "eliminate-dead-code")


def row(
    path: Path, place: target.Target, only: str, batch: int, sizes: dict[str, int], seconds: float
) -> dict[str, Any]:
    """Fuse and time one model."""
    loaded = io.load(path)
    start = begin(loaded, place, [spec.parse("repair")], str(path))
    pipeline = Pipeline(start, place, feeds_for(start, None, 0, str(path)))
    for name in _BEFORE:
        pipeline.run(spec.parse(name))
    plain = pipeline.model
    step = pipeline.run(spec.build("fuse", {"only": only, "target": place.name}))
    for name in _AFTER:
        pipeline.run(spec.parse(name))
    found: dict[str, Any] = {
        "model": path.name,
        "nodes": [measure(loaded)[0], measure(plain)[0], measure(pipeline.model)[0]],
        "status": step.status,
        "fused": step.report,
        "skipped": step.skipped,
    }
    if step.status != "kept":
        return found | {"reason": step.reason}
    feeds = inputs.of_batch(start.model, start.session, batch, 0, sizes)
    one, two = (functools.partial(runtime.open_session, model, place) for model in (plain, pipeline.model))
    latency = compare_latency(one, two, feeds, batch, seconds=seconds)
    return found | {"ms": [latency.before_ms, latency.after_ms], "speedup": latency.speedup, "ci95": latency.ci95}


def main() -> None:
    """Run over the models that are named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--only", default="", help="kinds of fusion, all by default")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--size", action="append", default=[], metavar="AXIS=N", help="size of a dynamic axis")
    parser.add_argument("--target", default="cpu", help="where to verify and time")
    parser.add_argument("--seconds", type=float, default=6.0, help="longest time for one comparison")
    parser.add_argument("--out", type=Path, help="write the rows as JSON")
    args = parser.parse_args()
    sizes = {name: int(number) for name, _, number in (text.partition("=") for text in args.size)}
    place, rows = target.find(args.target), []
    for path in args.models:
        try:
            found = row(path, place, args.only, args.batch, sizes, args.seconds)
        except UserError as error:
            print(f"{path.name:44} {error}", flush=True)
            continue
        rows.append(found)
        operators = " ".join(f"{name}:{count}" for name, count in found["fused"].items())
        nodes = " -> ".join(map(str, found["nodes"]))
        speed = f"{found['speedup']:.2f}x ({found['ci95'][0]:.2f}-{found['ci95'][1]:.2f})" if "speedup" in found else ""
        print(f"{path.name:44} {nodes:18} {speed or found['reason']:20} {operators}", flush=True)
    if args.out:
        args.out.write_text(json.dumps(rows, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
