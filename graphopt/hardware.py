"""The machine that graphopt runs on: its processor, its memory, and the share of them that this process may use."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import math
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from graphopt import container

_NAMES = {
    "avx2": "avx2",
    "avx512vnni": "avx512_vnni",
    "avxvnni": "avx_vnni",
    "avx512bf16": "avx512_bf16",
    "amxint8": "amx_int8",
    "amxbf16": "amx_bf16",
    "amxfp16": "amx_fp16",
    "neon": "neon",
    "asimd": "neon",
    "advsimd": "neon",
    "asimddp": "dotprod",
    "featdotprod": "dotprod",
    "i8mm": "i8mm",
    "feati8mm": "i8mm",
    "sve": "sve",
    "bf16": "bf16",
    "featbf16": "bf16",
}
"""What Linux, macOS and numpy call the extensions that matter here, in letters and digits only."""

_AVX512 = {"avx512f", "avx512bw", "avx512dq", "avx512vl"}
"""What "avx512" means: the parts that every server processor with AVX-512 has, and that kernels use together."""

_ARM_CORES = {
    "0xd08": "Cortex-A72",
    "0xd0b": "Cortex-A76",
    "0xd0c": "Neoverse N1",
    "0xd40": "Neoverse V1",
    "0xd49": "Neoverse N2",
    "0xd4f": "Neoverse V2",
}
"""Part numbers of Arm's own cores (implementer 0x41); /proc/cpuinfo gives no name on Arm."""


@dataclasses.dataclass(frozen=True)
class Machine:
    """Facts about the machine and the limits of this process. What cannot be found out is None.

    Attributes:
        processor: its name; empty when unknown.
        architecture: as the operating system calls it ("x86_64", "arm64").
        instructions: its instruction set extensions (see `instructions`).
        physical_cores, logical_cores: of the whole machine.
        usable_cores: logical cores that the scheduler may put this process on.
        core_quota: processor time per wall time that the container may use, as a number of cores.
        memory: bytes of the whole machine.
        memory_available: bytes that can be had without swapping, at most `memory_limit`.
        memory_limit: bytes that the container may use.
        system: operating system with its version.
        python: version of Python.
        load: processes that ran or waited to run, averaged over 1, 5 and 15 minutes.
    """

    processor: str
    architecture: str
    instructions: frozenset[str]
    physical_cores: int | None
    logical_cores: int
    usable_cores: int
    core_quota: float | None
    memory: int | None
    memory_available: int | None
    memory_limit: int | None
    system: str
    python: str
    load: tuple[float, float, float] | None

    @property
    def threads(self) -> int:
        """How many threads this process can really run at once."""
        return max(1, min(self.usable_cores, math.floor(self.core_quota or self.usable_cores)))

    def to_json(self) -> dict[str, Any]:
        """Return plain values; the extensions in alphabetical order."""
        return {**dataclasses.asdict(self), "instructions": sorted(self.instructions)}


def machine() -> Machine:
    """Look at the machine. Nothing is assumed to work: a library or file that is missing leaves None."""
    limits = container.limits()
    logical = os.cpu_count() or 1
    physical, usable, memory, available = _by_psutil()
    if hasattr(os, "sched_getaffinity"):
        usable = len(os.sched_getaffinity(0))
    if available is not None and limits.memory is not None:
        available = min(available, limits.memory)
    return Machine(
        processor=processor_name(),
        architecture=platform.machine(),
        instructions=instructions(),
        physical_cores=physical,
        logical_cores=logical,
        usable_cores=usable or logical,
        core_quota=limits.cores,
        memory=memory,
        memory_available=available,
        memory_limit=limits.memory,
        system=platform.platform(),
        python=platform.python_version(),
        load=_load(),
    )


@functools.cache
def instructions() -> frozenset[str]:
    """Return the extensions of the processor that decide which kernels of neural networks it can run.

    Any of avx2, avx512, avx512_vnni, avx_vnni, avx512_bf16, amx_int8, amx_bf16, amx_fp16 on x86, and of neon,
    dotprod, i8mm, sve, bf16 on Arm. Empty when they cannot be found out.
    """
    if sys.platform == "darwin":
        return from_sysctl(_output("sysctl", "hw.optional", "machdep.cpu"))
    return from_cpuinfo(_cpuinfo()) or _by_numpy()


def from_cpuinfo(text: str) -> frozenset[str]:
    """Return the extensions in /proc/cpuinfo of Linux: x86 lists them as `flags`, Arm as `Features`."""
    found = re.search(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)
    return _known(found[1].split() if found else ())


def from_sysctl(text: str) -> frozenset[str]:
    """Return the extensions in lines of sysctl on macOS: `hw.optional.*: 1`, or lists of words by `machdep.cpu`."""
    words = []
    for line in text.splitlines():
        key, _, value = line.partition(": ")
        if value.strip() == "1":
            words.append(key.rpartition(".")[2])
        elif key.endswith("features"):
            words += value.split()
    return _known(words)


def from_numpy(table: Mapping[str, bool]) -> frozenset[str]:
    """Return the extensions in numpy's table of what it found at its start, which knows neither AMX nor AVX-VNNI."""
    return _known(name for name, present in table.items() if present)


def processor_name() -> str:
    """Return what the maker calls the processor."""
    if sys.platform == "darwin":
        return _output("sysctl", "-n", "machdep.cpu.brand_string").strip()
    return name_in_cpuinfo(_cpuinfo()) or platform.processor()


def name_in_cpuinfo(text: str) -> str:
    """Return the name of the processor in /proc/cpuinfo, or on Arm that of its cores; empty when there is none."""
    fields: dict[str, str] = dict(re.findall(r"^([\w ]+?)[ \t]*:[ \t]*(.*?)[ \t]*$", text, re.MULTILINE))
    if "model name" in fields:
        return fields["model name"]
    if "CPU part" not in fields:
        return ""
    implementer, part = fields.get("CPU implementer"), fields["CPU part"]
    known = _ARM_CORES.get(part) if implementer == "0x41" else None
    return known or f"Arm implementer {implementer} part {part}"


def nvidia_gpus() -> list[str]:
    """Return the names of the NVIDIA GPUs that this process can see, one per device."""
    listed = re.findall(r"^GPU \d+: (.*?)(?: \(UUID.*)?$", _output("nvidia-smi", "-L"), re.MULTILINE)
    if listed:
        return listed
    files = sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
    return [re.sub(r"^Model:\s*", "", file.read_text().partition("\n")[0]) for file in files]


def _known(words: Iterable[str]) -> frozenset[str]:
    plain = {re.sub(r"[^a-z0-9]", "", word.lower()) for word in words}
    return frozenset({_NAMES[word] for word in plain & _NAMES.keys()} | ({"avx512"} if plain >= _AVX512 else set()))


def _by_numpy() -> frozenset[str]:
    try:
        table = importlib.import_module("numpy._core._multiarray_umath").__cpu_features__
    except Exception:  # numpy may be missing or broken in any way, and this part of it is not public
        return frozenset()
    return from_numpy(table)


def _by_psutil() -> tuple[int | None, int | None, int | None, int | None]:
    """Return physical cores, usable cores, and bytes of memory in all and available."""
    try:
        import psutil

        memory = psutil.virtual_memory()
        affinity = getattr(psutil.Process(), "cpu_affinity", None)
        usable = len(affinity()) if affinity else None
        return psutil.cpu_count(logical=False), usable, memory.total, memory.available
    except Exception:  # psutil may be missing, or refused what it wants to read
        return None, None, None, None


def _load() -> tuple[float, float, float] | None:
    try:
        return os.getloadavg()
    except (AttributeError, OSError):  # Windows has none
        return None


def _cpuinfo() -> str:
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _output(*command: str) -> str:
    """Return what a command prints, or nothing when there is no such command. Its exit code does not matter."""
    if not shutil.which(command[0]):
        return ""
    try:
        return subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=20).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""
