"""What calibration costs, in time and peak memory, against one forward pass over the same data.

    python benchmarks/calibration_cost.py MODEL --calibration CALIBRATION.npz [--threads 2]
    python benchmarks/calibration_cost.py MODEL --sentences PAIRS.csv --tokenizer FOLDER [--threads 2]

Every run is a process of its own, and the methods take turns; of onnxruntime's, which take long, there is one run each.
Seconds leave out imports and include opening the model; on a busy machine, processor seconds tell more. "added" is the
peak memory beyond that of the forward pass. Sentences, one or more in a line of the CSV file, are made into input_ids
and attention_mask, each padded to 64 tokens.
"""

from __future__ import annotations

import argparse
import csv
import json
import logging
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from graphopt import io, runtime, spec, target
from graphopt.data import NpzData

_OURS = ("forward", "calibrate", "calibrate, all observers")
_THEIRS = ("onnxruntime minmax", "onnxruntime entropy", "onnxruntime percentile")
_ALL = ("min-max", "moving-average", "percentile", "entropy", "mse")
_TOKENS = 64


def main() -> None:
    """Run every method in turn and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--calibration", type=Path)
    parser.add_argument("--sentences", type=Path, help="CSV file of sentences, in place of --calibration")
    parser.add_argument("--tokenizer", type=Path, help="folder of the tokenizer that they need")
    parser.add_argument("--samples", type=int, default=500)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--skip", nargs="*", default=(), choices=_THEIRS, help="what not to run")
    parser.add_argument("--only", choices=_OURS + _THEIRS, help="run one method here, and print its cost as JSON")
    arguments = parser.parse_args()
    if arguments.only:
        print(json.dumps(_run(arguments)))
        return
    with tempfile.TemporaryDirectory() as folder:
        data = arguments.calibration or _tokenized(arguments, Path(folder) / "tokens.npz")
        results: dict[str, list[tuple[float, float, int]]] = {}
        for number in range(arguments.rounds):
            for name in (*_OURS, *(() if number else [n for n in _THEIRS if n not in arguments.skip])):
                command = [sys.executable, *sys.argv, "--calibration", str(data), "--only", name]
                done = subprocess.run(command, check=False, capture_output=True, text=True)
                if done.returncode:
                    print(f"{name}: {done.stderr.strip().splitlines()[-1]}", file=sys.stderr)
                else:  # onnxruntime prints, too
                    results.setdefault(name, []).append(tuple(json.loads(done.stdout.splitlines()[-1])))
    seconds_of = {
        name: [statistics.median(column) for column in zip(*runs, strict=True)] for name, runs in results.items()
    }
    forward = seconds_of["forward"][0], seconds_of["forward"][1], max(run[2] for run in results["forward"])
    print(f"{'':25} seconds  times forward  processor s  times forward  peak MB  added MB")
    for name, runs in results.items():
        wall, processor, _ = seconds_of[name]
        peak = max(run[2] for run in runs)
        print(
            f"{name:25} {wall:7.2f} {wall / forward[0]:14.2f} {processor:12.2f} {processor / forward[1]:14.2f} "
            f"{peak / 1e6:8.0f} {(peak - forward[2]) / 1e6:9.0f}"
        )


def _tokenized(arguments: argparse.Namespace, path: Path) -> Path:
    """Write the first different sentences of a CSV file as tokens."""
    from transformers import AutoTokenizer

    with arguments.sentences.open(encoding="utf-8", newline="") as stream:
        cells = [cell for row in csv.reader(stream) for cell in row if " " in cell]
    tokenizer = AutoTokenizer.from_pretrained(arguments.tokenizer, local_files_only=True)
    sentences = list(dict.fromkeys(cells))[: arguments.samples]
    made = tokenizer(sentences, padding="max_length", truncation=True, max_length=_TOKENS, return_tensors="np")
    np.savez(path, **{name: made[name].astype(np.int64) for name in ("input_ids", "attention_mask")})
    return path


def _run(arguments: argparse.Namespace) -> tuple[float, float, int]:
    """Return what a method takes: seconds, processor seconds, and the peak memory of this process in bytes."""
    prepared = _prepare(arguments)
    start, busy = time.perf_counter(), time.process_time()
    prepared()
    seconds = time.perf_counter() - start, time.process_time() - busy
    return *seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _prepare(arguments: argparse.Namespace) -> Callable[[], object]:
    """Import what a method needs and return what is to be timed."""
    model, place = io.load(arguments.model), target.find("cpu", arguments.threads)
    import onnxruntime  # noqa: F401

    if arguments.only == "forward":
        return lambda: _forward(runtime.open_session(model, place), arguments)
    if arguments.only in _OURS:
        fields = {"data": str(arguments.calibration), "threads": arguments.threads, "batch": arguments.batch}
        fields |= {"samples": arguments.samples, "observers": _ALL if "all" in arguments.only else ("min-max",)}
        calibrate = spec.build("calibrate", fields)
        return lambda: calibrate(model)
    return _onnxruntime(arguments)


def _forward(session: runtime.Session, arguments: argparse.Namespace) -> None:
    for inputs in _batches(arguments):
        session.run(inputs)


def _onnxruntime(arguments: argparse.Namespace) -> Callable[[], object]:
    from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, create_calibrator

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._batches = _batches(arguments)

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self._batches, None)

    logging.getLogger().setLevel(logging.ERROR)
    names = {"minmax": "MinMax", "entropy": "Entropy", "percentile": "Percentile"}
    method = getattr(CalibrationMethod, names[arguments.only.split()[1]])

    def calibrate() -> None:
        with tempfile.TemporaryDirectory() as folder:
            calibrator = create_calibrator(
                arguments.model, augmented_model_path=str(Path(folder, "a.onnx")), calibrate_method=method
            )
            calibrator.collect_data(Reader())
            calibrator.compute_data()

    return calibrate


def _batches(arguments: argparse.Namespace) -> Iterator[dict[str, np.ndarray]]:
    data = NpzData(arguments.calibration)
    yield from (inputs for inputs, _ in data.batches(arguments.batch, arguments.samples))


if __name__ == "__main__":
    main()
