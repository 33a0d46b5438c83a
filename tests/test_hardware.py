"""Facts about the machine, from samples of what operating systems print, and from this machine."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import subprocess
import sys
import types

import pytest

from graphopt import container, hardware

SERVER = """\
processor\t: 0
vendor_id\t: GenuineIntel
model name\t: Intel(R) Xeon(R) Platinum 8488C
stepping\t: 8
flags\t\t: sse2 avx2 avx512f avx512dq avx512bw avx512vl avx_vnni avx512_bf16 avx512_vnni amx_bf16 amx_tile amx_int8
bugs\t\t: spectre_v1
power management:

processor\t: 1
model name\t: Intel(R) Xeon(R) Platinum 8488C
power management:
"""
OLD = """\
processor\t: 0
model name\t: Intel(R) Core(TM) i7-4770 CPU @ 3.40GHz
flags\t\t: fpu sse2 ssse3 fma sse4_2 avx f16c avx2 bmi2
"""
PHI = "flags\t: avx2 avx512f avx512pf avx512er avx512cd\n"
GRAVITON = """\
processor\t: 0
BogoMIPS\t: 2100.00
Features\t: fp asimd evtstrm aes crc32 atomics fphp asimdhp cpuid asimddp sve asimdfhm i8mm bf16 dgh rng
CPU implementer\t: 0x41
CPU architecture: 8
CPU part\t: 0xd40
CPU revision\t: 1
"""
RASPBERRY = """\
processor\t: 0
model name\t: ARMv7 Processor rev 3 (v7l)
Features\t: half thumb fastmult vfp edsp neon vfpv3 tls vfpv4
CPU implementer\t: 0x41
CPU part\t: 0xd08
"""
AMPERE = "Features\t: fp asimd asimddp\nCPU implementer\t: 0xc0\nCPU part\t: 0xac3\n"
APPLE = """\
hw.optional.arm.FEAT_DotProd: 1
hw.optional.arm.FEAT_I8MM: 1
hw.optional.arm.FEAT_BF16: 0
hw.optional.arm.FEAT_SME: 0
hw.optional.AdvSIMD: 1
hw.optional.floatingpoint: 1
machdep.cpu.cores_per_package: 1
machdep.cpu.brand_string: Apple M2 Pro
"""
INTEL_MAC = """\
hw.optional.avx2_0: 1
hw.optional.avx512f: 1
machdep.cpu.features: FPU VME SSE SSE2
machdep.cpu.leaf7_features: RDWRFSGS BMI1 AVX2 AVX512F AVX512DQ AVX512BW AVX512VL AVX512VNNI
machdep.cpu.brand_string: Intel(R) Core(TM) i7-1068NG7 CPU @ 2.30GHz
"""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (SERVER, "amx_bf16 amx_int8 avx2 avx512 avx512_bf16 avx512_vnni avx_vnni"),
        (OLD, "avx2"),
        (PHI, "avx2"),
        (GRAVITON, "bf16 dotprod i8mm neon sve"),
        (RASPBERRY, "neon"),
        (AMPERE, "dotprod neon"),
        ("flags\t\t:\nmodel name\t: nothing\n", ""),
        ("", ""),
    ],
    ids=["server", "old", "phi", "graviton", "raspberry", "ampere", "no flags", "no file"],
)
def test_instructions_in_cpuinfo(text, expected):
    assert sorted(hardware.from_cpuinfo(text)) == expected.split()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (APPLE, "dotprod i8mm neon"),
        (APPLE.replace("FEAT_BF16: 0", "FEAT_BF16: 1"), "bf16 dotprod i8mm neon"),
        (INTEL_MAC, "avx2 avx512 avx512_vnni"),
        ("", ""),
    ],
)
def test_instructions_in_sysctl(text, expected):
    assert sorted(hardware.from_sysctl(text)) == expected.split()


def test_instructions_in_the_table_of_numpy():
    table = {"AVX2": True, "AVX512VNNI": False, "AVX512F": True, "AVX512BW": True, "AVX512DQ": True, "ASIMDDP": False}
    assert hardware.from_numpy(table) == {"avx2"}
    assert hardware.from_numpy({**table, "AVX512VL": True, "AVX512VNNI": True}) == {"avx2", "avx512", "avx512_vnni"}
    assert hardware.from_numpy({"ASIMD": True, "ASIMDDP": True, "SVE": False}) == {"neon", "dotprod"}


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (SERVER, "Intel(R) Xeon(R) Platinum 8488C"),
        (GRAVITON, "Neoverse V1"),
        (RASPBERRY, "ARMv7 Processor rev 3 (v7l)"),
        (AMPERE, "Arm implementer 0xc0 part 0xac3"),
        (AMPERE.replace("0xac3", "0xd40"), "Arm implementer 0xc0 part 0xd40"),
        ("", ""),
    ],
)
def test_the_name_of_the_processor(text, name):
    assert hardware.name_in_cpuinfo(text) == name


@pytest.fixture
def fresh_instructions():
    """Look anew, and let nothing of the test stay behind."""
    hardware.instructions.cache_clear()
    yield hardware.instructions
    hardware.instructions.cache_clear()


def test_where_instructions_are_looked_for(fresh_instructions, monkeypatch):
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(hardware, "_cpuinfo", lambda: GRAVITON)
    assert "i8mm" in fresh_instructions()

    fresh_instructions.cache_clear()
    monkeypatch.setattr(hardware, "_cpuinfo", lambda: "")
    monkeypatch.setattr(hardware, "_by_numpy", lambda: frozenset({"avx2"}))
    assert fresh_instructions() == {"avx2"}

    fresh_instructions.cache_clear()
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(hardware, "_output", lambda *command: APPLE if command[0] == "sysctl" else "")
    assert fresh_instructions() == {"dotprod", "i8mm", "neon"}


def test_numpy_is_asked_without_trusting_it(monkeypatch):
    known = hardware._by_numpy()
    assert known <= hardware.instructions() | {"neon"}
    assert known, "numpy keeps its table elsewhere"
    monkeypatch.setitem(sys.modules, "numpy._core._multiarray_umath", None)
    assert hardware._by_numpy() == frozenset()


@pytest.fixture
def groups(tmp_path):
    """Write control groups: files by their path below the mount, and the lines of /proc/self/cgroup."""

    def write(membership, files):
        (tmp_path / "membership").write_text(membership)
        for name, text in files.items():
            path = tmp_path / "mount" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{text}\n")
        return container.limits(tmp_path / "membership", tmp_path / "mount")

    return write


def test_version_2_inside_a_container(groups):
    """The container's own group is the mount, and the path from outside may be shown or not."""
    files = {"cpu.max": "150000 100000", "memory.max": "536870912"}
    assert groups("0::/\n", files) == container.Limits(1.5, 1 << 29)
    assert groups("0::/docker/0123\n", files) == container.Limits(1.5, 1 << 29)
    assert groups("0::/../../job\n", files) == container.Limits(1.5, 1 << 29)


def test_version_2_the_tightest_group_counts(groups):
    files = {
        "a/cpu.max": "400000 100000",
        "a/b/cpu.max": "max 100000",
        "a/memory.max": "1000",
        "a/b/memory.max": "2000",
        "other/memory.max": "1",
    }
    assert groups("0::/a/b\n", files) == container.Limits(4.0, 1000)


def test_version_2_without_limits(groups):
    assert groups("0::/a\n", {"a/cpu.max": "max 100000", "a/memory.max": "max"}) == container.Limits(None, None)


def test_version_1(groups):
    membership = "9:name=systemd:/\n4:memory:/box\n3:cpu,cpuacct:/box\n0::/\n"
    files = {
        "cpu/box/cpu.cfs_quota_us": "50000",
        "cpu/box/cpu.cfs_period_us": "100000",
        "cpu/cpu.cfs_quota_us": "-1",
        "cpu/cpu.cfs_period_us": "100000",
        "memory/box/memory.limit_in_bytes": "1048576",
        "memory/memory.limit_in_bytes": "9223372036854771712",
    }
    assert groups(membership, files) == container.Limits(0.5, 1 << 20)
    unlimited = {
        **files,
        "cpu/box/cpu.cfs_quota_us": "-1",
        "memory/box/memory.limit_in_bytes": files["memory/memory.limit_in_bytes"],
    }
    assert groups(membership, unlimited) == container.Limits(None, None)


def test_no_control_groups(tmp_path):
    assert container.limits(tmp_path / "none", tmp_path) == container.Limits(None, None)


def test_this_machine():
    here = hardware.machine()
    assert here.architecture == platform.machine()
    assert here.python == platform.python_version()
    assert here.instructions == hardware.instructions()
    assert 1 <= here.threads <= here.usable_cores <= here.logical_cores == os.cpu_count()
    if here.memory is not None:
        assert 0 < here.memory_available <= here.memory
    assert json.loads(json.dumps(here.to_json()))["instructions"] == sorted(here.instructions)
    with pytest.raises(dataclasses.FrozenInstanceError):
        here.processor = "another"


def test_a_machine_without_psutil_and_load(monkeypatch):
    monkeypatch.setitem(sys.modules, "psutil", None)
    monkeypatch.delattr(os, "getloadavg", raising=False)
    here = hardware.machine()
    assert (here.physical_cores, here.memory, here.memory_available, here.load) == (None, None, None, None)
    assert here.usable_cores >= 1


def test_what_psutil_tells(monkeypatch):
    process = types.SimpleNamespace(cpu_affinity=lambda: [0, 3, 5])
    fake = types.SimpleNamespace(
        cpu_count=lambda logical: 8 if logical else 4,
        virtual_memory=lambda: types.SimpleNamespace(total=100, available=60),
        Process=lambda: process,
    )
    monkeypatch.setitem(sys.modules, "psutil", fake)
    assert hardware._by_psutil() == (4, 3, 100, 60)
    del process.cpu_affinity  # as on macOS
    assert hardware._by_psutil() == (4, None, 100, 60)


def test_the_limit_of_the_container_bounds_what_is_available(monkeypatch):
    monkeypatch.setattr(container, "limits", lambda: container.Limits(0.5, 1000))
    monkeypatch.setattr(hardware, "_by_psutil", lambda: (2, 4, 10_000, 5_000))
    here = hardware.machine()
    assert (here.core_quota, here.memory, here.memory_available, here.memory_limit) == (0.5, 10_000, 1000, 1000)
    assert here.threads == 1


@pytest.mark.parametrize(("usable", "quota", "threads"), [(8, None, 8), (8, 2.5, 2), (1, 4.0, 1), (8, 0.1, 1)])
def test_threads(usable, quota, threads):
    here = dataclasses.replace(hardware.machine(), usable_cores=usable, core_quota=quota)
    assert here.threads == threads


def test_nvidia_gpus(monkeypatch):
    listed = (
        "GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-1234)\n  MIG 1g.5gb Device 0: (UUID: MIG-5)\n"
        "GPU 1: Tesla T4 (UUID: GPU-6)\n"
    )
    monkeypatch.setattr(hardware, "_output", lambda *command: listed if command == ("nvidia-smi", "-L") else "")
    assert hardware.nvidia_gpus() == ["NVIDIA A100-SXM4-40GB", "Tesla T4"]


def test_a_command_that_is_missing_or_fails_or_hangs(monkeypatch):
    assert hardware._output("graphopt-has-no-such-command") == ""
    python = sys.executable
    assert hardware._output(python, "-c", "print('kept'); raise SystemExit(3)").strip() == "kept"

    def hang(*args, **options):
        raise subprocess.TimeoutExpired(args[0], options["timeout"])

    monkeypatch.setattr(subprocess, "run", hang)
    assert hardware._output(python, "-c", "") == ""
