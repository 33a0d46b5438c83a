"""How to train: the fields that the pass, the commands and recipes share."""

from __future__ import annotations

import dataclasses
from typing import Literal

from graphopt.passbase import param


@dataclasses.dataclass(frozen=True)
class Settings:
    """Everything that decides about the result of a training, besides the model."""

    data: str = param("", "Training data: a .npz file or package.module:factory.", source="data")
    eval_data: str = param("", "Data for the metric after every epoch; the best epoch is kept.", source="data")
    metric: str = param("", "Metric on the evaluation data; by default accuracy for classes, else mse or cosine.")
    loss: str = param(
        "auto", "cross-entropy, mse, l1, cosine, none or package.module:function(outputs, target) -> scalar tensor."
    )
    label_smoothing: float = param(0.0, "Share of the probability that cross-entropy spreads over all classes.")
    epochs: int = param(3, "Times to go through the training data.")
    batch: int = param(128, "Samples per step, over all processes.")
    optimizer: Literal["sgd", "adamw"] = param("sgd", "sgd (Nesterov momentum 0.9) or adamw.")
    learning_rate: float = param(0.01, "Highest learning rate.")
    schedule: Literal["onecycle", "cosine", "linear", "constant"] = param(
        "onecycle", "How the learning rate goes: onecycle rises and falls, cosine and linear fall, constant stays."
    )
    warmup: float = param(0.2, "Share of all steps in which the learning rate rises (not with constant).")
    weight_decay: float = param(5e-4, "L2 penalty on weights of two axes or more; decoupled with adamw.")
    l1: float = param(0.0, "L1 penalty on the same weights.")
    group_sparsity: float = param(
        0.0, "Penalty on the norm of each output channel, times the root of its size, which empties whole channels."
    )
    clip: float = param(1.0, "Largest norm of the gradient; 0 does not limit it.")
    batchnorm: Literal["batch", "frozen"] = param(
        "batch", "Normalize with the batch's statistics and re-estimate the stored ones, or leave them frozen."
    )
    augment: tuple[str, ...] = param(
        (), "For images: flip, crop (4 pixels of padding), crop:N, or package.module:function(inputs, generator)."
    )
    zeros: Literal["keep", "train"] = param("keep", "Whether zeros of a pruned weight stay zero.")
    train: tuple[str, ...] = param((), "Patterns of initializers to train, all others staying; by default all weights.")
    freeze: tuple[str, ...] = param((), "Patterns of initializers that stay as they are.")
    scales: Literal["fixed", "learned"] = param("fixed", "Of quantized tensors: left as they are, or trained (LSQ).")
    teacher: str = param("", "An .onnx file to learn from (distillation).", source="model")
    teacher_target: str = param("cpu", "Where the teacher runs: cpu, cuda, torch, ...")
    alpha: float = param(0.9, "Share of the teacher in the loss; the rest is the task's. Without labels it is all.")
    temperature: float = param(4.0, "By which class scores are divided before they are compared with the teacher's.")
    match: Literal["auto", "classes", "mse", "cosine"] = param(
        "auto", "How outputs are compared with the teacher's: as softened classes, by squares, or by their angle."
    )
    features: tuple[str, ...] = param(
        (), "Inner tensors to match, student=teacher; a learned projection joins different widths."
    )
    feature_weight: float = param(1.0, "Weight of the matched tensors in the loss.")
    attention: tuple[str, ...] = param((), "Inner tensors whose attention maps are matched, student=teacher.")
    attention_weight: float = param(1.0, "Weight of the matched attention maps in the loss.")
    patience: int = param(0, "Epochs without a better metric after which to stop; 0 never stops early.")
    precision: Literal["float32", "bfloat16", "float16"] = param("float32", "Of the arithmetic (mixed precision).")
    device: str = param("auto", "cpu, cuda, cuda:1 ...; auto takes a GPU if torch has one.")
    compile: bool = param(False, "Compile the network with torch.compile.")
    checkpoint: str = param("", "File to save the state to, and to go on from if it is of this very training.")
    seed: int = param(0, "Of order, augmentation, dropout and projections.")

    def __post_init__(self) -> None:
        """Refuse what cannot be meant.

        Raises:
            ValueError: a number outside its range.
        """
        for name, low in (("epochs", 1), ("batch", 1), ("patience", 0), ("seed", 0)):
            if getattr(self, name) < low:
                raise ValueError(f"{name} is {getattr(self, name)}, less than {low}")
        for name in ("weight_decay", "l1", "group_sparsity", "clip", "feature_weight", "attention_weight"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} is {getattr(self, name)}, less than 0")
        for name in ("label_smoothing", "warmup", "alpha"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}, outside 0 to 1")
        for name in ("learning_rate", "temperature"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be more than 0")
        for pair in (*self.features, *self.attention):
            if pair.count("=") != 1:
                raise ValueError(f"'{pair}' is not of the form student=teacher")
