"""What about the machine makes results differ or measurements unsteady, and whether there is room to work."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from graphopt.hardware import Machine
from graphopt.health.finding import Finding, one_line

_LITTLE_MEMORY = 1 << 30
_LITTLE_DISK = 2 << 30
_BUSY = 0.5
"""Share of the usable cores that other work may take before measurements suffer."""


def check(machine: Machine) -> Iterator[Finding]:
    """Yield what is worth knowing about the machine and the surroundings of this process."""
    yield instructions(machine)
    yield cores(machine)
    if machine.memory_available is not None:
        yield memory(machine.memory_available, machine.memory_limit)
    if machine.load is not None:
        yield load(machine.load[0], machine.threads)
    yield output()
    yield temporary_folder()


def instructions(machine: Machine) -> Finding:
    """Say what the processor's extensions mean for speed and for the accuracy of int8 models."""
    has, check = machine.instructions, "instructions"
    listed = ", ".join(sorted(has))
    if not has:
        message = f"extensions of the {machine.architecture} processor are unknown; int8 speed and scores may vary"
        return Finding(check, "note", message)
    if "neon" in has:
        if "dotprod" not in has:
            return Finding(check, "note", f"{listed}: without dot products int8 models are hardly faster than float")
        gain = "dot products" + (" and matrix products" if "i8mm" in has else "")
        return Finding(check, "ok", f"{listed}: int8 kernels use {gain}, and do not saturate")
    if "avx2" not in has:
        message = f"{listed or 'no AVX2'}: without AVX2 ONNX Runtime runs its slow kernels"
        return Finding(check, "warning", message, "measure on a machine like the one that the model ships to")
    if not has & {"avx512_vnni", "avx_vnni"}:
        message = (
            f"{listed}: without VNNI, int8 kernels for unsigned activations and signed weights add up in 16 bits and "
            "can saturate; scores of int8 models may differ from those on machines with VNNI"
        )
        return Finding(check, "note", message, "score int8 models on the kind of machine that they ship to")
    tiles = " and AMX" if "amx_int8" in has else ""
    return Finding(check, "ok", f"{listed}: int8 kernels use VNNI{tiles}, and do not saturate")


def cores(machine: Machine) -> Finding:
    """Compare the cores that this process may use with those that ONNX Runtime will see."""
    all_of_them = f"{machine.logical_cores} logical cores"
    limits = []
    if machine.usable_cores < machine.logical_cores:
        limits.append(f"its affinity is {machine.usable_cores}")
    if machine.core_quota is not None and machine.core_quota < machine.logical_cores:
        limits.append(f"the quota of its container is {machine.core_quota:g}")
    if not limits:
        return Finding("cores", "ok", f"this process may use all {all_of_them}")
    message = (
        f"of {all_of_them}, {' and '.join(limits)}; ONNX Runtime starts a thread for every physical core that it "
        "sees, and too many of them take turns"
    )
    fix = f"give graphopt --threads {machine.threads}, and ONNX Runtime intra_op_num_threads={machine.threads}"
    return Finding("cores", "warning", message, fix)


def memory(available: int, limit: int | None) -> Finding:
    """Check the memory that can be had, in bytes."""
    message = f"{_gibibytes(available)} available"
    if limit is not None:
        message += f", of {_gibibytes(limit)} that the container may use"
    if available < _LITTLE_MEMORY:
        fix = "end other programs, or raise the limit of the container"
        return Finding("memory", "warning", f"{message}: too little for any but small models", fix)
    return Finding("memory", "ok", message)


def load(last_minute: float, threads: int) -> Finding:
    """Check that the machine is idle enough to measure on."""
    message = f"{last_minute:.2f} processes ran or waited in the last minute, on {threads} usable cores"
    if last_minute > _BUSY * threads:
        return Finding("load", "warning", f"{message}: measurements will be noisy", "wait until the machine is idle")
    return Finding("load", "ok", message)


def output() -> Finding:
    """Check that results can be printed, whatever the names in a model."""
    if sys.stdout is None or sys.stdout.closed or not sys.stdout.writable():
        return Finding("stdout", "broken", "results cannot be printed", "start graphopt with stdout open")
    encoding = sys.stdout.encoding or "ascii"
    try:
        "é → 名".encode(encoding)
    except (UnicodeEncodeError, LookupError):
        message = f"its encoding is {encoding}, which has no characters for some names in models"
        return Finding("stdout", "warning", message, "set PYTHONIOENCODING=utf-8")
    return Finding("stdout", "ok", f"writable, {encoding}")


def temporary_folder() -> Finding:
    """Check that the folder where models lie while they are worked on can be written, and has room."""
    check, fix = "temporary folder", "set TMPDIR to a folder with room that you may write to"
    try:
        folder = tempfile.gettempdir()
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"graphopt")
        free = shutil.disk_usage(folder).free
    except OSError as error:
        return Finding(check, "broken", f"nothing can be written there: {one_line(error)}", fix)
    message = f"{folder}, {_gibibytes(free)} free"
    wanted = os.environ.get("TMPDIR")
    if wanted and Path(wanted).resolve() != Path(folder).resolve():
        return Finding(check, "warning", f"{message}: TMPDIR is {wanted}, where nothing can be written", fix)
    if free < _LITTLE_DISK:
        return Finding(check, "warning", f"{message}: too little for large models", fix)
    return Finding(check, "ok", message)


def _gibibytes(count: int) -> str:
    return f"{count / (1 << 30):.1f} GiB"
