"""Training from .onnx files on CIFAR-10: fine-tuning, quantization-aware training, distillation, from scratch, speed.

    python benchmarks/training.py STAGE --arrays FOLDER --model resnet20.onnx --work FOLDER

STAGE is one of
    finetune  the float ResNet-20 on the training images
    qat       its int8 version (or --weights int4, ternary), quantized and then trained quantized (after `finetune`)
    student   ResNet-20 of half the channels, taught by the fine-tuned one and alone, with several seeds
    scratch   the network of two convolutions, untrained, through its .onnx and in plain PyTorch
    speed     an epoch of ResNet-20 through the graph against the same module in plain PyTorch, in alternating blocks

FOLDER of --arrays holds cifar10_train.npz (uint8 `image`, `labels`), and resnet_{calibration,validation,test}.npz
(normalized floats). The epoch that is kept is chosen on the validation images, which are 3,000 of the training images
and are not trained on; the test images are looked at once, in the end.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

import graphopt
from graphopt import io, metrics, registry, runtime
from graphopt import statistics as intervals
from graphopt.data import open_data
from graphopt.models import cnn, resnet
from graphopt.target import find
from graphopt.training import roles
from graphopt.training.examples import Shuffled, mapped
from graphopt.training.schedule import factor

MEAN = np.array([0.485, 0.456, 0.406], np.float32)[:, None, None]
DEVIATION = np.array([0.229, 0.224, 0.225], np.float32)[:, None, None]


def prepare(arrays: Path, work: Path) -> Path:
    """Write the training images that are not in the validation set, normalized; return the file."""
    path = work / "train.npz"
    if path.exists():
        return path
    with np.load(arrays / "cifar10_train.npz") as train, np.load(arrays / "resnet_validation.npz") as validation:
        image = (train["image"].astype(np.float32) / 255 - MEAN) / DEVIATION
        held = {row.tobytes() for row in validation["image"]}
        chosen = np.array([row.tobytes() not in held for row in image])
        np.savez(path, image=image[chosen], labels=train["labels"][chosen])
    return path


def rows_of(path: Path, arrays: Path) -> np.ndarray:
    """Return which test images a model gets right, [N]."""
    model = io.load(path)
    data = open_data(arrays / "resnet_test.npz")
    session = runtime.open_session(model, find("cpu"))
    score = metrics.evaluate(metrics.METRICS["accuracy"], session, data, runtime.model_inputs(model))
    assert score.rows is not None
    return score.rows[:, 0]


def show(name: str, right: np.ndarray, base: np.ndarray | None = None) -> None:
    """Print an accuracy, and its difference from another on the same images with the 95 % interval."""
    text = f"{name}: {right.mean():.4f}"
    if base is not None:
        low, high = intervals.paired_proportions(right, base)
        text += f", {right.mean() - base.mean():+.4f} (95 % {low:+.4f} to {high:+.4f})"
    print(text, flush=True)


def history(done: graphopt.training.finetuning.Finetuned) -> None:
    """Print the curve of a training."""
    if done.metric:
        print(f"  epoch 0: validation {done.metric.before:.4f}")
    for row in done.history:
        metric = "" if row["metric"] is None else f", validation {row['metric']:.4f}"
        print(f"  epoch {row['epoch']}: loss {row['loss']:.4f}{metric}, {row['seconds']:.0f} s")
    print(f"  kept: epoch {done.best}", flush=True)


def finetune(args: argparse.Namespace) -> None:
    """Fine-tune the float network, whose batch normalization the exporter has folded away."""
    done = graphopt.finetune(
        args.model,
        args.work / "resnet20.tuned.onnx",
        data=str(prepare(args.arrays, args.work)),
        eval_data=str(args.arrays / "resnet_validation.npz"),
        epochs=args.epochs or 8,
        learning_rate=0.02,
        augment=("flip", "crop"),
    )
    history(done)
    base = rows_of(args.model, args.arrays)
    show("as delivered", base)
    show("fine-tuned", rows_of(args.work / "resnet20.tuned.onnx", args.arrays), base)


def qat(args: argparse.Namespace) -> None:
    """Quantize the fine-tuned network, and train it quantized."""
    names = ("tuned", args.weights, f"{args.weights}.qat")
    tuned, after, trained = (args.work / f"resnet20.{name}.onnx" for name in names)
    calibration = args.arrays / "resnet_calibration.npz"
    steps = ["simplify", f"calibrate{{data={calibration}}}", f"quantize-static{{weights={args.weights}}}"]
    graphopt.apply(tuned, steps, after, verify=args.weights != "ternary")  # untrained, that is too noisy to be kept
    done = graphopt.finetune(
        after,
        trained,
        data=str(prepare(args.arrays, args.work)),
        eval_data="" if args.last else str(args.arrays / "resnet_validation.npz"),
        epochs=args.epochs or 2,
        learning_rate=args.rate,
        augment=("flip", "crop"),
        scales=args.scales,
        teacher=str(tuned),
        alpha=0.5,
    )
    history(done)
    base = rows_of(tuned, args.arrays)
    show("float, fine-tuned", base)
    show(f"{args.weights} after training", rows_of(after, args.arrays), base)
    show(f"{args.weights}, trained quantized, scales {args.scales}", rows_of(trained, args.arrays), base)


def student(args: argparse.Namespace) -> None:
    """Train a network of half the channels, with and without a teacher, from the same weights and in the same order."""
    gaps = []
    for seed in range(args.seeds):
        torch.manual_seed(seed)
        path = args.work / f"student{seed}.onnx"
        network = resnet.resnet20(width=8)
        graphopt.export(network, path, inputs=resnet.example_inputs(), dynamic=resnet.DYNAMIC, keep_batchnorm=True)
        scores = {}
        for name, teacher in (("taught", str(args.work / "resnet20.tuned.onnx")), ("alone", "")):
            out = args.work / f"student{seed}.{name}.onnx"
            graphopt.finetune(
                path,
                out,
                data=str(prepare(args.arrays, args.work)),
                epochs=args.epochs or 6,
                learning_rate=0.1,
                clip=5.0,
                augment=("flip", "crop"),
                teacher=teacher,
                seed=seed,
            )
            scores[name] = rows_of(out, args.arrays)
        show(f"seed {seed}, alone", scores["alone"])
        show(f"seed {seed}, taught", scores["taught"], scores["alone"])
        gaps.append(float(scores["taught"].mean() - scores["alone"].mean()))
    if len(gaps) > 1:
        half = {2: 12.71, 3: 4.303, 4: 3.182, 5: 2.776}[len(gaps)] * statistics.stdev(gaps) / len(gaps) ** 0.5
        mean = statistics.mean(gaps)
        print(f"mean of {len(gaps)} seeds: {mean:+.4f} (Student's 95 % {mean - half:+.4f} to {mean + half:+.4f})")


def scratch(args: argparse.Namespace) -> None:
    """Train the untrained network of two convolutions through its .onnx, and the module itself in plain PyTorch."""
    torch.manual_seed(0)
    module = cnn.cnn(channels=3, size=32)
    path, out = args.work / "cnn.onnx", args.work / "cnn.trained.onnx"
    graphopt.export(module, path, inputs=cnn.example_inputs(channels=3, size=32), dynamic=cnn.DYNAMIC)
    epochs, rate, batch = args.epochs or 5, 0.02, 128
    train = prepare(args.arrays, args.work)
    done = graphopt.finetune(path, out, data=str(train), epochs=epochs, learning_rate=rate, clip=0.0, batch=batch)
    history(done)
    show("untrained", rows_of(path, args.arrays))
    show("through .onnx", rows_of(out, args.arrays))
    groups = [
        {"params": [p for p in module.parameters() if p.ndim > 1], "weight_decay": 5e-4},
        {"params": [p for p in module.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.SGD(groups, rate, momentum=0.9, nesterov=True)
    examples = Shuffled(mapped(open_data(train)), batch)  # type: ignore[arg-type]
    module.train()
    for epoch in range(1, epochs + 1):
        begun, losses = time.perf_counter(), []
        for step, (feeds, labels) in enumerate(examples.epoch(0, epoch)):
            share = ((epoch - 1) * examples.steps + step) / (epochs * examples.steps)
            for group in optimizer.param_groups:
                group["lr"] = rate * factor("onecycle", share, 0.2)
            loss = functional.cross_entropy(module(torch.from_numpy(feeds["image"])), torch.from_numpy(labels))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        print(f"  plain PyTorch, epoch {epoch}: loss {np.mean(losses):.4f}, {time.perf_counter() - begun:.0f} s")
    graphopt.export(
        module.eval(), args.work / "cnn.plain.onnx", inputs=cnn.example_inputs(channels=3, size=32), dynamic=cnn.DYNAMIC
    )
    show("plain PyTorch", rows_of(args.work / "cnn.plain.onnx", args.arrays))


def speed(args: argparse.Namespace) -> None:
    """Time training steps through the graph and in plain PyTorch, in alternating blocks of the same batches."""
    torch.manual_seed(0)
    module = resnet.resnet20()
    path = args.work / "resnet20.fresh.onnx"
    graphopt.export(module, path, inputs=resnet.example_inputs(), dynamic=resnet.DYNAMIC, keep_batchnorm=True)
    model = io.load(path)
    graph = registry.find("runtime", "torch")().module(model, roles.trainable(model))
    graph.mode.batchnorm = "batch"
    module.train()
    data = mapped(open_data(prepare(args.arrays, args.work)))  # type: ignore[arg-type]
    contenders = {
        "graph": (
            lambda x: next(iter(graph({"image": x}).values())),
            torch.optim.SGD(graph.parameters(), 0.01, momentum=0.9),
        ),
        "module": (module, torch.optim.SGD(module.parameters(), 0.01, momentum=0.9)),
    }
    batches = [data.take(np.arange(i * 128, (i + 1) * 128)) for i in range(5)]
    ratios = []
    for turn in range(-1, args.turns):
        seconds = {}
        for name in ("graph", "module") if turn % 2 else ("module", "graph"):
            run, optimizer = contenders[name]
            begun = time.perf_counter()
            for feeds, labels in batches:
                loss = functional.cross_entropy(run(torch.from_numpy(feeds["image"])), torch.from_numpy(labels))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            seconds[name] = time.perf_counter() - begun
        if turn >= 0:  # the first turn warms up
            ratios.append(seconds["graph"] / seconds["module"])
    low, middle, high = np.quantile(ratios, [0.25, 0.5, 0.75])
    print(
        f"time of the graph over the module: median {middle:.3f}, quartiles {low:.3f} to {high:.3f}, {len(ratios)} turns"
    )


STAGES = {"finetune": finetune, "qat": qat, "student": student, "scratch": scratch, "speed": speed}


def main() -> None:
    """Run one stage."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--arrays", type=Path, required=True)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=0)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--scales", choices=("fixed", "learned"), default="learned")
    parser.add_argument(
        "--weights", choices=("int8", "int4", "ternary"), default="int8", help="qat: what to keep them in"
    )
    parser.add_argument("--rate", type=float, default=0.002, help="qat: learning rate")
    parser.add_argument("--turns", type=int, default=20)
    parser.add_argument("--last", action="store_true", help="qat: take the last epoch, however it scores.")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    STAGES[args.stage](args)


if __name__ == "__main__":
    main()
