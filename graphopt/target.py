"""Where a model will run, as data: what people write after `--target`.

A target is written `name` or `name{field=value ...}`. The fields of `Target` are set by their names, keys with
a dot (`session.disable_prepacking=1`) are session configuration entries of ONNX Runtime, and any other key is an
option of the execution provider (`cuda{device_id=1 enable_cuda_graph=1}`).
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, Literal

from graphopt import hardware, registry, spec
from graphopt.errors import UsageError, did_you_mean

CPU = "CPUExecutionProvider"

_SETTINGS = {"threads": int, "inter_threads": int, "level": Literal["all", "layout", "extended", "basic", "none"]}
"""The fields that people may set, with their types."""


@dataclasses.dataclass(frozen=True)
class Target:
    """A place to run a model.

    Attributes:
        name: what people type after `--target`.
        runtime: the runtime that executes it (a file in `runtimes/`).
        provider: ONNX Runtime execution provider.
        recipe: what `optimize` runs for it by default.
        threads: threads within one operator; 0 lets the runtime decide.
        inter_threads: operators that may run side by side; 0 runs them one after the other.
        level: how far the runtime may rewrite the graph.
        options: options of the execution provider, `(key, value)`.
        config: session configuration entries, `(key, value)`.
    """

    name: str
    runtime: str = "ort"
    provider: str = CPU
    recipe: str = "default"
    threads: int = 0
    inter_threads: int = 0
    level: str = "all"
    options: tuple[tuple[str, str], ...] = ()
    config: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        """Return what `find` reads back."""
        plain = find(self.name)
        changed = {key: getattr(self, key) for key in _SETTINGS if getattr(self, key) != getattr(plain, key)}
        return spec.join(self.name, {**changed, **dict(self.options), **dict(self.config)})


TARGETS = {
    target.name: target
    for target in (
        Target("cpu"),
        Target("cuda", provider="CUDAExecutionProvider", recipe="cuda"),
        Target("reference", runtime="reference"),
        Target("torch", runtime="torch", provider="torch", recipe="lossless"),
    )
}


@dataclasses.dataclass(frozen=True)
class Capabilities:
    """What pays on a target.

    Attributes:
        precision: what to convert a float32 network to first: "int8" or "float16".
        integer: element types of activations and weights that its integer kernels like best: "u8s8" or "s8s8".
        integer_conv: whether it has integer convolution at all; without it, a quantized convolution runs in
            float or falls back to the processor with copies. None when the runtime does not tell.
        channels: convolutions are fast when channel counts are multiples of this.
        instructions: the processor's instruction set extensions (see `graphopt.hardware`); empty off the CPU.
        fused: operators beyond standard ONNX that it has kernels for, as `domain::name`; empty when unknown.
    """

    precision: Literal["int8", "float16"]
    integer: Literal["u8s8", "s8s8"]
    integer_conv: bool | None
    channels: int
    instructions: frozenset[str]
    fused: frozenset[str]


def find(text: str, threads: int = 0) -> Target:
    """Return the target that `text` describes, using that many threads unless it says otherwise.

    Any execution provider that ONNX Runtime lists is a target, by its name with or without `ExecutionProvider`.

    Raises:
        UsageError: there is no such target, or it has no such option.
    """
    name, fields = spec.split(text, "target")
    target = TARGETS.get(name) or _providers().get(name.lower().removesuffix("executionprovider"))
    if target is None:
        others = f" or a provider of ONNX Runtime ({', '.join(_providers())})" if _providers() else ""
        raise UsageError(f"unknown target '{name}'; choose {', '.join(TARGETS)}{others}")
    settings: dict[str, Any] = {"threads": threads}
    options, config = [], []
    for key, value in fields.items():
        if key in _SETTINGS:
            settings[key] = spec.convert(value, _SETTINGS[key], f"target {name}: {key}")
        elif "." in key:
            config.append((key, value))
        elif target.provider == CPU:  # which has no options, and would take any without a word
            raise UsageError(f"target {name}: unknown option '{key}'{did_you_mean(key, _SETTINGS)}")
        else:
            options.append((key, value))
    for key in ("threads", "inter_threads"):
        if settings.get(key, 0) < 0:
            raise UsageError(f"target {name}: {key}: {settings[key]} is negative; 0 lets the runtime decide")
    return dataclasses.replace(target, **settings, options=tuple(options), config=tuple(config))


@functools.cache
def capabilities(target: Target) -> Capabilities:
    """Return what pays on a target: facts of the processor and of the runtime's own list of kernels.

    Channel blocks are those of ONNX Runtime's blocked convolutions: 16 floats with AVX-512 and on Arm, else 8
    (`MlasNchwcGetBlockSize`); tensor cores of GPUs want multiples of 8 half-precision numbers.
    """
    kernels = registry.find("runtime", target.runtime)().kernels(target)
    fused = frozenset(f"{domain}::{name}" for domain, name in kernels if domain not in ("", "ai.onnx"))
    integer_conv = any(name in ("QLinearConv", "ConvInteger") for _, name in kernels) if kernels else None
    if target.provider != CPU:
        cuda = target.provider == "CUDAExecutionProvider"
        return Capabilities("float16", "s8s8", False if cuda else integer_conv, 8, frozenset(), fused)
    instructions = hardware.instructions()
    arm = "neon" in instructions
    channels = 16 if arm or "avx512" in instructions else 8
    return Capabilities("int8", "s8s8" if arm else "u8s8", integer_conv, channels, instructions, fused)


@functools.cache
def _providers() -> dict[str, Target]:
    """Return a target for every provider of every runtime that has no name in TARGETS."""
    known = {target.provider for target in TARGETS.values()}
    names = [name for entry in registry.entries("runtime") for name in registry.find("runtime", entry)().providers()]
    short = {name.removesuffix("ExecutionProvider").lower(): name for name in names if name not in known}
    return {name: Target(name, provider=provider) for name, provider in short.items()}
