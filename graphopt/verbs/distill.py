"""Teach a student network what another .onnx file computes, with labels or without"""

from __future__ import annotations

from typing import Any

import click

from graphopt.verbs import _training


@click.command("distill")
@click.argument("teacher")
@click.argument("student")
@_training.options("teacher")
def command(teacher: str, student: str, **options: Any) -> None:
    """Train STUDENT to compute what TEACHER computes, and write it; both are .onnx files.

    Class scores are compared softened by --temperature, other outputs by squares or angles (--match). Without labels
    in the data the teacher is all there is to learn from. --features and --attention match inner tensors.
    """
    from graphopt.training.finetuning import distill

    def run(**settings: Any) -> Any:
        return distill(teacher, student, **settings)

    shared = {key: options.pop(key) for key in ("output", "as_json", "log", "plot", "resume")}
    _training.run_and_print(run, given=options, **shared)
