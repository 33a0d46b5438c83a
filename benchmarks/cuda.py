"""Every verb on a GPU, and what float32, float16 and int8 are worth there.

    python benchmarks/cuda.py MODEL... -o benchmarks/results/cuda.md [--target cuda] [--batch 1,32]

Each model is converted to float16 (onnxruntime's converter) and to int8 QDQ (calibrated on random inputs, since only
speed is looked at), then all are timed on the target with inputs and outputs on the device, also with CUDA graphs
where the model allows them. Then every verb runs on the first model; its exit code is written down.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx

import graphopt
from graphopt import hardware, inputs, io, runtime, target
from graphopt.errors import UserError


def versions(place: target.Target) -> list[str]:
    """Name the GPU, its driver, and the libraries."""
    names = ("onnxruntime-gpu", "onnxruntime", "onnx", "numpy", "graphopt")
    found = [f"{name} {version}" for name in names if (version := io.version(name))]
    return [
        f"GPU: {', '.join(hardware.nvidia_gpus()) or 'none'}",
        f"target: {place}",
        f"versions: {', '.join(found)}, Python {sys.version.split()[0]}",
    ]


def variants(path: Path, folder: Path) -> dict[str, Path]:
    """Write the model in float16 and in int8; leave out what cannot be made, and say so."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    made = {"float32": path}
    half = folder / f"{path.stem}.fp16.onnx"
    try:
        onnx.save_model(convert_float_to_float16(onnx.load_model(path), keep_io_types=True), half)
        graphopt.validate(half)
        made["float16"] = half
    except Exception as error:
        print(f"{path.name}: no float16: {error}", file=sys.stderr)
    model = io.load(path)
    feeds = inputs.of_batch(model, runtime.open_session(model, target.find("cpu")), 8, 0)
    np.savez(folder / "data.npz", **feeds)  # type: ignore[arg-type]
    integer = folder / f"{path.stem}.int8.onnx"
    try:
        calibrate = f"calibrate{{data={folder / 'data.npz'} observers=min-max,mse target=cuda}}"
        if graphopt.apply(path, [calibrate, "quantize-static{observer=mse}"], integer).met:
            made["int8"] = integer
    except UserError as error:
        print(f"{path.name}: no int8: {error}", file=sys.stderr)
    return made


def timings(path: Path, place: str, batch: list[int]) -> list[str]:
    """Return rows of a table: precision, batch, milliseconds, speed against float32."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        made = variants(path, Path(folder))
        for captured in (False, True):
            name = place if not captured else f"{place}{{enable_cuda_graph=1}}"
            try:
                done = graphopt.benchmark(list(made.values()), target=name, batch=batch, seconds=5.0)
            except UserError as error:
                rows.append(f"| {path.name} | {name} | | | | {error} |")
                continue
            kinds = {str(file): kind for kind, file in made.items()}
            rows += [
                f"| {path.name} | {kinds[row.model]}{', CUDA graph' if captured else ''} | {row.batch} | {row.median_ms:.3f} "
                f"| {row.speedup:.2f} ({row.ci95[0]:.2f} to {row.ci95[1]:.2f}) | {row.verdict} |"
                for row in done.rows
            ]
    return rows


def verbs(path: Path, place: str) -> list[str]:
    """Run every verb on the target; return rows of a table: command, exit code, last line."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        out = str(Path(folder) / "out.onnx")
        commands = (
            ["doctor"],
            ["optimize", str(path), "-o", out, "--target", place],
            ["apply", str(path), "fold-constants", "-o", out, "--target", place],
            ["fold-batchnorm", str(path), "-o", out, "--target", place],
            ["validate", str(path), "--target", place],
            ["validate", str(path), "--target", place, "--reference-target", "cpu", "--min-sqnr", "40"],
            ["bench", str(path), "--target", place, "--target", "cpu", "--batch", "1"],
            ["bisect", str(path), str(path), "--target", place],
            ["bisect", str(path), str(path), "--target", place, "--reference-target", "cpu", "--min-sqnr", "40"],
            ["profile", str(path), "--target", place],
        )
        for words in commands:
            ran = subprocess.run(
                [sys.executable, "-m", "graphopt", *words], capture_output=True, text=True, check=False
            )
            shown = " ".join(word.replace(folder, "").replace(str(path), path.name) for word in words)
            last = (ran.stdout.strip() or ran.stderr.strip()).splitlines()[-1:]
            rows.append(f"| `graphopt {shown}` | {ran.returncode} | {' '.join(last)[:100].replace('|', '/')} |")
    return rows


def main() -> None:
    """Run everything and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", type=Path, nargs="+")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--target", default="cuda")
    parser.add_argument("--batch", default="1,32")
    args = parser.parse_args()
    try:
        graphopt.validate(args.models[0], target=args.target)
    except UserError as error:
        sys.exit(f"not run: {error}")
    lines = [f"- {fact}" for fact in versions(target.find(args.target))]
    lines += ["", "| model | precision | batch | ms | speed against float32 | |", "|---|---|---|---|---|---|"]
    for path in args.models:
        lines += timings(path, args.target, [int(size) for size in args.batch.split(",")])
    lines += ["", "| command | exit code | last line |", "|---|---|---|", *verbs(args.models[0], args.target)]
    args.output.parent.mkdir(parents=True, exist_ok=True)
    io.write_bytes(args.output, ("\n".join(["# CUDA", "", *lines]) + "\n").encode())
    print("\n".join(lines))


if __name__ == "__main__":
    main()
