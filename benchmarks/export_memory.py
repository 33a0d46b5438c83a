"""How much memory does exporting a large network take? Peak of the whole process, against the weights.

    python benchmarks/export_memory.py [--layers 12] [--width 8192]

The default network holds 3.2 GB of float32 weights. The export runs in a process of its own, check included.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

_NETWORK = """
import torch
from torch import nn


def build():
    layers = []
    with torch.no_grad():
        for index in range({layers}):
            layer = nn.Linear({width}, {width}, bias=False, device="meta").to_empty(device="cpu")
            layer.weight.zero_()
            layer.weight.fill_diagonal_(0.9 + index / 100)
            layer.weight[0].fill_(1e-4 * index)
            layers.append(layer)
    return nn.Sequential(*layers), {{"input": torch.ones(2, {width})}}
"""


def main() -> None:
    """Export and report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=8192)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "network.py").write_text(_NETWORK.format(layers=args.layers, width=args.width), encoding="utf-8")
        words = [sys.executable, "-m", "graphopt", "export", "network:build", "-o", os.path.join(folder, "out.onnx")]
        subprocess.run(words, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    weights = args.layers * args.width**2 * 4
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    print(f"weights {weights / 1e9:.2f} GB, peak {peak / 1e9:.2f} GB: {peak / weights:.2f} times")


if __name__ == "__main__":
    main()
