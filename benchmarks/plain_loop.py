"""Does the benchmark agree with what anybody would write by hand?

    python benchmarks/plain_loop.py A B [--batch 1] [--repeats 15] [--seconds 10]

The plain loop opens a session with onnxruntime's defaults, warms it up, takes the median of many runs, closes it, and
does the same with the other model; repeated, that gives ratios and their interval. Beside it: `graphopt bench`.
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


def plain(path: str, feeds: Arrays, runs: int = 300) -> float:
    """Return the median seconds of a run."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
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
    pairs = np.array([[plain(path, feeds) for path in (args.first, args.second)] for _ in range(args.repeats)])
    center, (low, high) = statistics.center(np.log(pairs[:, 0] / pairs[:, 1]))
    one, two = np.median(pairs, axis=0) * 1e3
    print(f"plain loop  {one:.3f} ms  {two:.3f} ms  {np.exp(center):.3f}x  ({np.exp(low):.3f} to {np.exp(high):.3f})")
    first, second = graphopt.benchmark(
        [args.first, args.second], batch=[args.batch], seconds=args.seconds, width=0, memory=False
    ).rows
    print(
        f"bench       {first.median_ms:.3f} ms  {second.median_ms:.3f} ms  {second.speedup:.3f}x  "
        f"({second.ci95[0]:.3f} to {second.ci95[1]:.3f})"
    )
    agree = np.exp(low) <= second.ci95[1] and second.ci95[0] <= np.exp(high)
    print("the intervals overlap" if agree else "the intervals do not overlap")


if __name__ == "__main__":
    main()
