"""Does the benchmark agree with what anybody would write by hand?

    python benchmarks/plain_loop.py A B [--batch 1] [--repeats 15] [--seconds 10]

The plain loop opens a session, warms it up, takes the median of many runs, closes it, and does the same with the other
model; repeated, that gives ratios and their interval. Beside it: `graphopt bench`.

The loop runs twice: with onnxruntime's defaults, whose idle workers spin from one run to the next, and with the one
setting that graphopt changes, by which they stop at the end of a run so that they take no core from another session.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import onnxruntime

import graphopt
from graphopt import inputs, io, runtime, statistics
from graphopt.runtime import Arrays
from graphopt.target import find


def plain(path: str, feeds: Arrays, stop: bool, runs: int = 300) -> float:
    """Return the median seconds of a run; with `stop`, workers do not spin between runs."""
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.force_spinning_stop", str(int(stop)))
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    for _ in range(20):
        session.run(None, feeds)
    seconds = []
    for _ in range(runs):
        start = time.perf_counter()
        session.run(None, feeds)
        seconds.append(time.perf_counter() - start)
    return float(np.median(seconds))


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("first")
    parser.add_argument("second")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=10.0)
    args = parser.parse_args()
    target = find("cpu")
    model = io.load(args.first)
    feeds = inputs.of_batch(model, runtime.open_session(model, target), args.batch, seed=0)
    intervals = {}
    for stop in (False, True):
        paths = (args.first, args.second)
        pairs = np.array([[plain(path, feeds, stop) for path in paths] for _ in range(args.repeats)])
        center, (low, high) = statistics.center(np.log(pairs[:, 0] / pairs[:, 1]))
        one, two = np.median(pairs, axis=0) * 1e3
        name = "plain loop, graphopt's setting" if stop else "plain loop, defaults"
        intervals[name] = np.exp(low), np.exp(high)
        print(f"{name:31} {one:.3f} ms  {two:.3f} ms  {np.exp(center):.3f}x  ({np.exp(low):.3f} to {np.exp(high):.3f})")
    first, second = graphopt.benchmark(
        [args.first, args.second], batch=[args.batch], seconds=args.seconds, width=0, memory=False
    ).rows
    print(
        f"{'bench':31} {first.median_ms:.3f} ms  {second.median_ms:.3f} ms  {second.speedup:.3f}x  "
        f"({second.ci95[0]:.3f} to {second.ci95[1]:.3f})"
    )
    for name, (low, high) in intervals.items():
        agree = low <= second.ci95[1] and second.ci95[0] <= high
        print(f"{name}: the intervals {'overlap' if agree else 'do not overlap'}")


if __name__ == "__main__":
    main()
