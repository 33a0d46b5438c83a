"""Train a small convolutional network on scikit-learn's handwritten digits and export it to ONNX.

    python models/digits/train.py [--out DIR] [--seed 0]

Writes `digits.onnx`, `calibration.npz` and `test.npz`. The same seed on the same machine and library
versions writes the same bytes.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import onnxscript.optimizer
import torch
from onnx_ir.passes.common import ClearMetadataAndDocStringPass
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional

TEST_SAMPLES = 750
CALIBRATION_SAMPLES = 256
EPOCHS = 40
BATCH = 32
PEAK_RATE = 3e-3
OPSET = 20


def conv_norm(inputs: int, outputs: int) -> nn.Sequential:
    """A 3x3 convolution and batch normalization: [batch, inputs, 8, 8] -> [batch, outputs, 8, 8]."""
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs))


class Residual(nn.Module):  # type: ignore[misc]  # torch is optional, so mypy skips it
    """Two convolutions and a shortcut around them: [batch, channels, 8, 8] -> the same shape."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = conv_norm(channels, channels)
        self.second = conv_norm(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Add the convolutions' output to `x` [batch, channels, 8, 8]."""
        return functional.relu(x + self.second(functional.relu(self.first(x))))


class Digits(nn.Module):  # type: ignore[misc]  # torch is optional, so mypy skips it
    """Classify images [batch, 1, 8, 8], scaled to 0..1, into logits [batch, 10]."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_norm(1, 48)
        self.block = Residual(48)
        self.head = conv_norm(48, 64)
        self.linear = nn.Linear(64, 10)

    def forward(self, image: Tensor) -> Tensor:
        """Return the logits [batch, 10] of `image` [batch, 1, 8, 8]."""
        x = functional.relu(self.stem(image))
        x = functional.relu(self.head(self.block(x)))
        return self.linear(x.mean((2, 3)))


def build() -> nn.Module:
    """The untrained network; its first weights follow torch's seed."""
    return Digits()


def load(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Split the digits by seed, with equal class shares on both sides.

    Returns:
        Training images float32 [1047, 1, 8, 8] in 0..1, test images [750, 1, 8, 8], training labels
        int64 [1047], test labels [750].
    """
    digits = load_digits()
    images = (digits.images / 16).astype(np.float32)[:, None]
    labels = digits.target.astype(np.int64)
    return tuple(train_test_split(images, labels, test_size=TEST_SAMPLES, stratify=labels, random_state=seed))


def shift(images: Tensor) -> Tensor:
    """Move each image [batch, 1, 8, 8] by -1, 0 or 1 pixel on both axes, filling with zeros."""
    size = images.shape[-1]
    windows = functional.pad(images, (1, 1, 1, 1)).unfold(2, size, 1).unfold(3, size, 1)
    rows, columns = torch.randint(3, (2, len(images)))
    return windows[torch.arange(len(images)), :, rows, columns]


def train(images: np.ndarray, labels: np.ndarray, seed: int) -> nn.Module:
    """Train for a fixed schedule and return the last weights, in inference mode.

    Args:
        images: float32 [samples, 1, 8, 8].
        labels: int64 [samples].
        seed: decides the first weights, the order of the samples and their shifts.
    """
    torch.manual_seed(seed)
    torch.set_num_threads(2)
    torch.use_deterministic_algorithms(True)
    model = build()
    x, y = torch.from_numpy(images), torch.from_numpy(labels)
    steps = len(x) // BATCH
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_RATE, total_steps=EPOCHS * steps)
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(x))[: steps * BATCH].split(BATCH):
            optimizer.zero_grad()
            functional.cross_entropy(model(shift(x[batch])), y[batch], label_smoothing=0.05).backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def export(model: nn.Module, path: Path) -> None:
    """Write the network as ONNX, weights inside, batch normalization kept, no trace of this machine."""
    program = torch.onnx.export(
        model,
        (torch.zeros(2, 1, 8, 8),),
        dynamo=True,
        opset_version=OPSET,
        input_names=["image"],
        output_names=["logits"],
        dynamic_shapes={"image": {0: "batch"}},
        optimize=False,  # it would fold batch normalization into the convolutions
        verbose=False,
    )
    assert program is not None
    onnxscript.optimizer.fold_constants(program.model)
    onnxscript.optimizer.remove_unused_nodes(program.model)
    ClearMetadataAndDocStringPass()(program.model)
    for value in ir.convenience.create_value_mapping(program.model.graph).values():
        value.metadata_props.clear()
    ir.save(program.model, path)


def accuracy(path: Path, images: np.ndarray, labels: np.ndarray) -> float:
    """The share of images [samples, 1, 8, 8] that the exported file gives their labels [samples]."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"image": images})
    return float(np.mean(logits.argmax(axis=1) == labels))


def main() -> None:
    """Build the three files and print the test accuracy of the exported one."""
    parser = argparse.ArgumentParser(description="Train and export the digits network.")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder for the three files")
    parser.add_argument("--seed", type=int, default=0, help="decides the split and the training")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)

    train_images, test_images, train_labels, test_labels = load(args.seed)
    path = args.out / "digits.onnx"
    export(train(train_images, train_labels, args.seed), path)
    np.savez_compressed(args.out / "calibration.npz", image=train_images[:CALIBRATION_SAMPLES])
    np.savez_compressed(args.out / "test.npz", image=test_images, labels=test_labels)
    share = accuracy(path, test_images, test_labels)
    print(f"{len(train_images)} training samples, {len(test_images)} test samples, test accuracy {share:.2%}")


if __name__ == "__main__":
    main()
