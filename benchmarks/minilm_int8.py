"""A sentence encoder in integers: Spearman's correlation on STS-B and latency, beside onnxruntime's dynamic int8.

    python benchmarks/minilm_int8.py MODEL --tokenizer FOLDER --pairs dev.csv --train train.csv [--passes SPEC;SPEC ...]

MODEL is the exported encoder (see sentences.py), FOLDER its tokenizer. Passes with a field `data` get 256 sentences of
train.csv, padded to 64 tokens. Latency is interleaved with the float file's in one process.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import functools
import tempfile
import time
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr
from sentences import embeddings
from transformers import AutoTokenizer

from graphopt import io, runtime, spec, target
from graphopt.latency import compare_latency

_SEQUENCES = (
    "fuse",
    "quantize-dynamic;fuse",
    "smooth{insert_mul=true};quantize-dynamic;fuse",
    "smooth{insert_mul=true};quantize-dynamic{rows=all};fuse",
)


def rows_of(path: Path) -> list[list[str]]:
    """Return the lines of sentence, sentence, score."""
    with path.open(encoding="utf-8", newline="") as stream:
        return [row for row in csv.reader(stream) if len(row) == 3]


def make(source: Path, data: dict[str, np.ndarray], passes: str, output: Path) -> float:
    """Run passes on the model, write it, and return the seconds that took."""
    model = io.load(source)
    start = time.perf_counter()
    for text in ("simplify", *passes.split(";")):
        pass_ = spec.parse(text)
        if getattr(pass_, "data", None) == "":
            pass_ = dataclasses.replace(pass_, data=data)
        pass_(model)
    io.save(model, output)
    return time.perf_counter() - start


def main() -> None:
    """Score and time."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--pairs", type=Path, required=True)
    parser.add_argument("--train", type=Path, required=True)
    parser.add_argument("--passes", action="append", help="a sequence of passes, separated by semicolons")
    parser.add_argument("--seconds", type=float, default=4.0)
    args = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(args.tokenizer, local_files_only=True)
    sentences = [row[0] for row in rows_of(args.train)[:256]]
    made = tokenizer(sentences, padding="max_length", truncation=True, max_length=64, return_tensors="np")
    data = {name: made[name].astype(np.int64) for name in ("input_ids", "attention_mask")}
    pairs, place = rows_of(args.pairs), target.find("cpu", 2)
    rng = np.random.default_rng(0)
    print(f"{'':64} Spearman   drop     MB   1 x 64              8 x 64")
    with tempfile.TemporaryDirectory() as folder:
        files = {"float": args.model}
        for number, passes in enumerate(args.passes or _SEQUENCES):
            files[passes] = Path(folder) / f"{number}.onnx"
            make(args.model, data, passes, files[passes])
        from onnxruntime.quantization import quantize_dynamic

        files["onnxruntime dynamic"] = Path(folder) / "onnxruntime.onnx"
        quantize_dynamic(args.model, files["onnxruntime dynamic"])
        best = 0.0
        for name, path in files.items():
            session = runtime.open_session(io.load(path), place)
            one, two = (embeddings(session, tokenizer, [row[side] for row in pairs]) for side in (0, 1))
            score = float(spearmanr(np.sum(one * two, axis=1), [float(row[2]) for row in pairs]).statistic)
            best = best or score
            row = [f"{name:64} {score:.4f} {best - score:+.4f} {path.stat().st_size / 1e6:6.1f}"]
            for batch in (1, 8):
                ids = rng.integers(1000, 28000, (batch, 64))
                feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
                openers = [functools.partial(runtime.find(place).open_file, files[n], place) for n in ("float", name)]
                timing = compare_latency(*openers, feeds, batch, seconds=args.seconds)
                row.append(f"x{timing.speedup:4.2f} [{timing.ci95[0]:4.2f} {timing.ci95[1]:4.2f}]")
            print("   ".join(row), flush=True)


if __name__ == "__main__":
    main()
