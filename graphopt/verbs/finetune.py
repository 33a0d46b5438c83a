"""Train the weights of an .onnx file, quantized or not"""

from __future__ import annotations

from typing import Any

import click

from graphopt.verbs import _training


@click.command("finetune")
@click.argument("model")
@_training.options()
def command(model: str, **options: Any) -> None:
    """Train the weights of MODEL and write it; the graph, its names and types stay.

    In a QDQ graph, quantized weights train as floats and are rounded in the end. With --eval-data the best epoch is
    kept. With --teacher the outputs of another .onnx file are learned, with labels or without.
    """
    from graphopt.training.finetuning import finetune

    def run(**settings: Any) -> Any:
        return finetune(model, **settings)

    shared = {key: options.pop(key) for key in ("output", "as_json", "log", "plot", "resume")}
    _training.run_and_print(run, given=options, **shared)
