"""Can the benchmark be trusted? A model against itself, and against itself slowed down, on a loaded machine.

    python benchmarks/noise.py MODEL [--trials 100] [--load 2] [--slowdown 0 0.05] [--seconds 3]

Every trial is one short `graphopt.timing.race`. Printed: in how many trials the 95 % interval of the speed-up holds
the truth, and in how many it says "slower". The slow-down is injected by spinning after every run for that share of
what the run took. Load is made of busy loops in processes of their own.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import numpy as np

from graphopt import inputs, io, runtime, timing
from graphopt.runtime import Arrays, Session
from graphopt.target import find


class Slowed(Session):
    """A session that takes a share more time for every run."""

    def __init__(self, inner: Session, share: float) -> None:
        self._inner, self._share = inner, share

    def run(self, feeds: Arrays, outputs: object = None) -> dict[str, np.ndarray]:
        """Run, then spin."""
        start = time.perf_counter()
        result = self._inner.run(feeds)
        now = time.perf_counter()
        end = now + (now - start) * self._share
        while time.perf_counter() < end:
            pass
        return result


@contextlib.contextmanager
def loaded(processes: int) -> Iterator[None]:
    """Keep that many processors busy, for as long as this process lives."""
    code = "import os\nparent = os.getppid()\nwhile os.getppid() == parent: pass"
    busy = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(processes)]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


def trial(
    one: Callable[[], Session], two: Callable[[], Session], feeds: Arrays, seconds: float, seed: int
) -> tuple[float, ...]:
    """Race once; return the speed-up, its interval, and how long it took."""
    start = time.perf_counter()
    ratio, (low, high) = timing.speedup(timing.race([one, two], feeds, seconds=seconds, seed=seed), 1)
    return ratio, low, high, time.perf_counter() - start


def main() -> None:
    """Run the experiment."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--load", type=int, default=os.cpu_count(), help="busy processes; by default one per processor")
    parser.add_argument("--slowdown", type=float, nargs="+", default=[0.0, 0.05])
    parser.add_argument("--seconds", type=float, default=3.0, help="length of a trial")
    parser.add_argument("--batch", type=int, default=1)
    args = parser.parse_args()
    target = find("cpu")

    def opened() -> Session:
        return runtime.find(target).open_file(args.model, target)

    feeds = inputs.of_batch(io.load(args.model), opened(), args.batch, seed=0)
    print("slow-down  trials  holds truth  'slower'  'faster'  median ratio  width (10/50/90 %)     seconds")
    for share in args.slowdown:
        with loaded(args.load):
            found = np.array(
                [
                    trial(opened, (lambda s=share: Slowed(opened(), s)) if share else opened, feeds, args.seconds, seed)  # type: ignore[misc]
                    for seed in range(args.trials)
                ]
            )
        ratio, low, high, seconds = found.T
        truth = 1 / (1 + share)
        widths = " ".join(f"{w:.3f}" for w in np.percentile(high - low, [10, 50, 90]))
        print(
            f"{share:9.0%} {args.trials:7} {np.sum((low <= truth) & (truth <= high)):12} {np.sum(high < 1):9} "
            f"{np.sum(low > 1):9} {np.median(ratio):13.4f}  {widths} {seconds.mean():14.1f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
