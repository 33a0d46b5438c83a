"""What 8-bit products that saturate cost on processors without VNNI (simulated), and what avoid-saturation leaves of it.

    python benchmarks/saturation.py [--classifier MODEL --calibration CALIBRATION.npz --test TEST.npz [--samples 10000]]
        [--encoder MODEL.onnx --tokenizer FOLDER --train TRAIN.csv --pairs DEV.csv [--limit 200]] [--seconds 10]

First a network that is made to saturate: nearest-mean classification of the sample digits in black on white, whose bright
background meets weights of one sign. Then a trained classifier, quantized by graphopt (accuracy on test samples), and a
sentence encoder whose matrix products are (Spearman's correlation on STS-B). Each is scored as a processor with VNNI
computes it and as one without does, before and after; latencies are measured on this machine, interleaved.
"""

from __future__ import annotations

import argparse
import csv
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from scipy.stats import spearmanr
from sentences import embeddings
from transformers import AutoTokenizer

from graphopt import compare, io, runtime, saturation, spec
from graphopt.data import LABELS
from graphopt.latency import compare_latency
from graphopt.passbase import Result
from graphopt.passes.quantization._simulation import simulate
from graphopt.pipeline import duplicate
from graphopt.target import find

_CPU = find("cpu", 2)
_DIGITS = Path(__file__).parents[1] / "models" / "digits"
_BATCH = 100
_LENGTH = 64

Score = Callable[[runtime.Session], tuple[float, np.ndarray]]
"""Returns a metric, and outputs to compare."""


def main() -> None:
    """Run what data is given for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--classifier", type=Path)
    parser.add_argument("--calibration", type=Path)
    parser.add_argument("--test", type=Path)
    parser.add_argument("--samples", type=int, default=10000)
    parser.add_argument("--encoder", type=Path)
    parser.add_argument("--tokenizer", type=Path)
    parser.add_argument("--train", type=Path)
    parser.add_argument("--pairs", type=Path)
    parser.add_argument("--limit", type=int, default=200, help="pairs to score")
    parser.add_argument("--seconds", type=float, default=10, help="time for each latency comparison")
    args = parser.parse_args()
    _digits(args.seconds)
    if args.classifier:
        with np.load(args.test) as stored:
            test = {name: stored[name][: args.samples] for name in stored.files}
        with np.load(args.calibration) as stored:
            calibration = {name: stored[name] for name in stored.files}
        _report(args.classifier.stem, io.load(args.classifier), calibration, _accuracy(test), args.seconds)
    if args.encoder:
        tokenizer = AutoTokenizer.from_pretrained(args.tokenizer, local_files_only=True)
        sentences = [row[0] for row in _rows(args.train)][:256]
        made = tokenizer(sentences, padding="max_length", truncation=True, max_length=_LENGTH, return_tensors="np")
        calibration = {name: made[name].astype(np.int64) for name in ("input_ids", "attention_mask")}
        score = _correlation(tokenizer, list(_rows(args.pairs))[: args.limit])
        fields = {"ops": ("MatMul", "Gemm")}
        _report(args.encoder.stem, io.load(args.encoder), calibration, score, args.seconds, **fields)


def _digits(seconds: float) -> None:
    """Build the network that saturates."""
    with np.load(_DIGITS / "test.npz") as stored:
        name = next(name for name in stored.files if name != LABELS)
        images, labels = 1 - stored[name].reshape(len(stored[name]), -1).clip(0, 1), stored[LABELS]
    half = len(images) // 2
    means = np.stack([images[:half][labels[:half] == digit].mean(axis=0) for digit in range(10)]).astype(np.float32)
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["N", means.shape[1]]))
    constants = [ir.tensor(array.astype(np.float32)) for array in (means, -np.sum(means**2, axis=1) / 2)]
    weights = [ir.Value(name=name, const_value=tensor) for name, tensor in zip("wb", constants, strict=True)]
    product = ir.node("Gemm", [x, *weights], {"transB": 1})
    y = product.outputs[0]
    y.name, y.type, y.shape = "y", ir.TensorType(ir.DataType.FLOAT), ir.Shape(["N", 10])
    graph = ir.Graph([x], [y], nodes=[product], initializers=weights, opset_imports={"": 18}, name="digits")
    model = ir.Model(graph, ir_version=9)
    test = {"x": images[half:].astype(np.float32), LABELS: labels[half:]}
    _report("digits, black on white", model, {"x": images[:half].astype(np.float32)}, _accuracy(test), seconds)


def _report(
    name: str, model: ir.Model, data: dict[str, np.ndarray], score: Score, seconds: float, **fields: Any
) -> None:
    """Quantize, and print what comes of it on both kinds of processor."""
    _apply("simplify", model)
    quantized = duplicate(model)
    _apply("calibrate", quantized, data=data)
    _apply("quantize-static", quantized, **fields)
    metric, expected = score(runtime.open_session(model, _CPU))
    print(f"\n{name}\n{'':28} with VNNI           without (simulated)\n{'float':28} {metric:.4f}")
    feeds = {key: array[:1] for key, array in data.items()}
    for how in (None, {"method": "7-bit"}, {"method": "7-bit", "reference": model}, {"method": "u8u8"}):
        made, line = duplicate(quantized), ""
        if how is not None:
            report = _apply("avoid-saturation", made, **how).report
            line = saturation.promise(report)
            openers = [functools.partial(runtime.open_session, m, _CPU) for m in (quantized, made)]
            timing = compare_latency(*openers, feeds, 1, seconds=seconds)
            line += f"; {timing.speedup:.2f} times the speed [{timing.ci95[0]:.2f} {timing.ci95[1]:.2f}]"
        cells = []
        for version in (simulate(made, exact=True).model, simulate(made).model):
            metric, outputs = score(runtime.open_session(version, _CPU))
            cells.append(f"{metric:.4f} {compare.sqnr(expected, outputs):6.1f} dB")
        label = " ".join(
            ("as quantized" if how is None else how["method"], "from float" if how and len(how) > 1 else "")
        )
        print(f"{label:28} {'   '.join(cells)}  {line}", flush=True)


def _apply(name: str, model: ir.Model, **fields: Any) -> Result:
    result = spec.build(name, fields)(model)
    assert isinstance(result, Result)
    return result


def _accuracy(test: dict[str, np.ndarray]) -> Score:
    inputs = {name: array for name, array in test.items() if name != LABELS}

    def score(session: runtime.Session) -> tuple[float, np.ndarray]:
        parts = []
        for start in range(0, len(test[LABELS]), _BATCH):
            parts.append(next(iter(session.run({k: a[start : start + _BATCH] for k, a in inputs.items()}).values())))
        outputs = np.concatenate(parts)
        return float(np.mean(outputs.argmax(1) == test[LABELS])), outputs

    return score


def _correlation(tokenizer: object, rows: list[list[str]]) -> Score:
    def score(session: runtime.Session) -> tuple[float, np.ndarray]:
        one, two = (embeddings(session, tokenizer, [row[side] for row in rows], 8) for side in (0, 1))
        found = spearmanr(np.sum(one * two, axis=1), [float(row[2]) for row in rows]).statistic
        return float(found), np.concatenate([one, two])

    return score


def _rows(path: Path) -> Iterator[list[str]]:
    with path.open(encoding="utf-8", newline="") as stream:
        yield from (row for row in csv.reader(stream) if len(row) == 3)


if __name__ == "__main__":
    main()
