"""Does an exported sentence encoder still find alike what people find alike? Spearman's correlation on STS-B.

    python benchmarks/sentences.py FOLDER --pairs dev.csv [-o minilm.onnx]

FOLDER holds a sentence encoder of Hugging Face (config, tokenizer, safetensors). It is exported with `graphopt.export`
and run in ONNX Runtime: tokens cut at 64, mean over the attention mask, L2 normalization, cosine. The pairs are lines
of sentence, sentence, score.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr
from transformers import AutoTokenizer

import graphopt
from graphopt import io, runtime
from graphopt.target import find


def embeddings(session: runtime.Session, tokenizer: object, sentences: list[str], batch: int = 64) -> np.ndarray:
    """Return one normalized vector per sentence, [N, width]."""
    parts = []
    for start in range(0, len(sentences), batch):
        made = tokenizer(  # type: ignore[operator]
            sentences[start : start + batch], padding=True, truncation=True, max_length=64, return_tensors="np"
        )
        feeds = {name: made[name].astype(np.int64) for name in ("input_ids", "attention_mask")}
        hidden = next(iter(session.run(feeds).values()))
        mask = feeds["attention_mask"][:, :, None]
        mean = (hidden * mask).sum(1) / mask.sum(1)
        parts.append(mean / np.linalg.norm(mean, axis=1, keepdims=True))
    return np.concatenate(parts)


def main() -> None:
    """Export and score."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pairs", type=Path, required=True)
    parser.add_argument("-o", "--output", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = args.output or Path(folder) / "model.onnx"
        done = graphopt.export(args.folder, path)
        target = find("cpu")
        session = runtime.open_session(io.load(path), target)
    with args.pairs.open(encoding="utf-8", newline="") as stream:
        rows = [row for row in csv.reader(stream) if len(row) == 3]
    tokenizer = AutoTokenizer.from_pretrained(args.folder, local_files_only=True)
    one, two = (embeddings(session, tokenizer, [row[side] for row in rows]) for side in (0, 1))
    found = spearmanr(np.sum(one * two, axis=1), [float(row[2]) for row in rows]).statistic
    worst = min(output.sqnr for check in done.checks for output in check.outputs)
    print(f"{len(rows)} pairs: Spearman {found:.4f}; {done.nodes[1]} nodes, {worst:.0f} dB against PyTorch at least")


if __name__ == "__main__":
    main()
