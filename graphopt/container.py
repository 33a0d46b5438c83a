"""What a container may use of its machine: the limits of Linux control groups, versions 1 and 2."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

_UNLIMITED = 1 << 60
"""Version 1 writes the largest number of pages that fits in 63 bits when memory has no limit."""


@dataclasses.dataclass(frozen=True)
class Limits:
    """The tightest limits on this process.

    Attributes:
        cores: processor time per wall time, as a number of cores; None without a quota.
        memory: bytes; None without a limit.
    """

    cores: float | None
    memory: int | None


def limits(membership: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> Limits:
    """Read the limits of this process's control groups and of all groups above them.

    Args:
        membership: the file that lists the groups, one `ID:CONTROLLERS:PATH` per line.
        root: where the groups are mounted. Inside a container that is its own group, and PATH may not exist there.
    """
    cores, memory = [], []
    for folder in _folders(membership, root):
        quota = _words(folder / "cpu.max") or _words(folder / "cpu.cfs_quota_us") + _words(folder / "cpu.cfs_period_us")
        if len(quota) == 2 and quota[0].isdecimal() and int(quota[1]):
            cores.append(int(quota[0]) / int(quota[1]))
        for size in _words(folder / "memory.max") or _words(folder / "memory.limit_in_bytes"):
            if size.isdecimal() and int(size) < _UNLIMITED:
                memory.append(int(size))
    return Limits(min(cores, default=None), min(memory, default=None))


def _folders(membership: Path, root: Path) -> Iterator[Path]:
    """Yield the folder of each group, then of the groups above it."""
    for line in _text(membership).splitlines():
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):  # version 2 has no controllers in its line, and no folder for them
            folder = root / controller
            yield folder
            for part in path.split("/"):
                if part not in ("", ".."):
                    folder /= part
                    yield folder


def _words(path: Path) -> list[str]:
    return _text(path).split()


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""
