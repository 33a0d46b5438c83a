"""`doctor`: what it tries in other processes, what it makes of it, and what it prints where little works."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tempfile

import pytest

from graphopt import diagnosis, hardware, registry
from graphopt.diagnosis import Diagnosis, Finding, diagnose
from graphopt.health import family, installation, libraries, surroundings, trial
from graphopt.health.trial import Outcome

MACHINE = hardware.Machine(
    processor="Some CPU",
    architecture="x86_64",
    instructions=frozenset({"avx2", "avx512", "avx512_vnni"}),
    physical_cores=4,
    logical_cores=8,
    usable_cores=8,
    core_quota=None,
    memory=8 << 30,
    memory_available=4 << 30,
    memory_limit=None,
    system="Some OS",
    python="3.11",
    load=(0.5, 1.0, 2.0),
)


@pytest.fixture
def modules(tmp_path, monkeypatch):
    """Write modules that come first on the search path, in this process and in those that it starts."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(**sources):
        for name, source in sources.items():
            (tmp_path / f"{name}.py").write_text(source)
        return tmp_path

    return write


def test_steps_are_tried_in_another_process(modules):
    modules(graphopt_probe="import os, sys\nprint('noise')\nos.write(1, b'more noise')\nsys.stderr.write('and more')")
    outcomes = trial.attempt(["import graphopt_probe", "import json", "runtime reference"])
    assert outcomes == [
        Outcome("import graphopt_probe"),
        Outcome("import json"),
        Outcome("runtime reference", value=[]),
    ]
    assert "graphopt_probe" not in sys.modules


@pytest.mark.parametrize(
    ("source", "error", "died"),
    [
        ("raise ValueError('not\\n today')", "ValueError: not today", False),
        ("raise ValueError('x' * 9999)", "ValueError: " + "x" * 288, False),
        ("import graphopt_has_no_such_module", "ModuleNotFoundError: No module named", False),
        ("raise SystemExit(7)", "SystemExit: 7", False),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "the process was ended by SIGSEGV", True),
        (
            "import os; os.write(2, b'first\\nno such instruction\\n'); os._exit(9)",
            "the process ended with code 9; last words: no such instruction",
            True,
        ),
    ],
    ids=["exception", "long", "missing", "exit", "signal", "last words"],
)
def test_a_step_that_fails_does_not_take_the_others_with_it(modules, source, error, died):
    modules(graphopt_probe=source)
    outcomes = trial.attempt(["import json", "import graphopt_probe", "import math", "import graphopt_probe"])
    assert [outcome.error is None for outcome in outcomes] == [True, False, True, False]
    assert outcomes[1].error.startswith(error)
    assert len(outcomes[1].error) <= 300
    assert (outcomes[1].died, outcomes[3]) == (died, outcomes[1])


def test_a_step_that_hangs(modules):
    modules(graphopt_probe="import time\nwhile True: time.sleep(1)")
    done, late = trial.attempt(["import json", "import graphopt_probe"], seconds=1.5)
    assert done == Outcome("import json")
    assert (late.died, late.error) == (True, "was not done after 1.5 seconds")


def test_a_folder_without_a_package_is_no_library(modules):
    (modules() / "graphopt_probe").mkdir()
    (outcome,) = trial.attempt(["import graphopt_probe"])
    assert "only a folder without __init__.py is left" in outcome.error
    assert not outcome.died


def test_no_process_can_be_started(monkeypatch):
    def refuse(*args, **options):
        raise OSError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(subprocess, "run", refuse)
    assert [outcome.died for outcome in trial.attempt(["import json", "import math"])] == [True, True]


@pytest.fixture
def tried(monkeypatch):
    """Let steps of a trial fail with the given errors, and onnxruntime be installed (or not)."""

    def check(errors, faulty=(), *, died=(), onnxruntime=True, value=()):
        def attempt(steps):
            return [
                Outcome(step, None if step in errors else list(value), errors.get(step), step in died)
                if step.startswith("runtime")
                else Outcome(step, error=errors.get(step), died=step in died)
                for step in steps
            ]

        monkeypatch.setattr(trial, "attempt", attempt)
        monkeypatch.setattr(family, "importable", lambda: onnxruntime)
        monkeypatch.setattr(family, "members", list)
        monkeypatch.setattr(installation, "version", lambda name: None if name == "pyyaml" else "1.2")
        monkeypatch.setattr(installation, "intruder", lambda module, package: None)
        return libraries.check(faulty)

    return check


def told(findings):
    return [(finding.check, finding.status, finding.message) for finding in findings if finding.status != "ok"]


def test_libraries_that_can_be_imported(tried):
    (found,) = tried({})
    assert (found.check, found.status) == ("libraries", "ok")
    assert found.message.startswith("click, rich, pyyaml, numpy, ")
    assert found.message.endswith("onnxscript, onnxruntime can be imported")
    assert "onnxruntime" not in tried({}, onnxruntime=False)[0].message


def test_what_runtimes_find_is_passed_on(tried):
    found = dataclasses.asdict(Finding("providers", "warning", "one is lazy", "wake it"))
    findings = tried({}, value=[found])
    assert [f for f in findings if f.check == "providers"] == [Finding(**found)] * len(registry.entries("runtime"))


def test_one_library_takes_others_with_it(tried):
    failed = ["ml_dtypes", "onnx", "onnx_ir", "onnxscript", "onnxruntime"]
    errors = {f"import {name}": f"ImportError: {name} wants numpy" for name in failed}
    findings = tried({"import numpy": "ImportError: numpy is cut off", **errors, "runtime ort": "x"})
    assert told(findings) == [
        ("libraries", "broken", "numpy 1.2 cannot be imported: ImportError: numpy is cut off"),
        (
            "libraries",
            "broken",
            "ml_dtypes, onnx, onnx-ir, onnxscript, onnxruntime cannot be imported, either, for want of numpy",
        ),
        ("runtime ort", "note", "not examined, because libraries cannot be imported"),
    ]
    assert findings[0].fix == "pip install --force-reinstall --no-deps numpy==1.2"
    assert findings[1].fix is None


def test_a_library_that_is_not_installed(tried):
    found = tried({"import yaml": "ModuleNotFoundError: No module named 'yaml'"})[0]
    assert (found.status, found.message, found.fix) == ("broken", "pyyaml is not installed", "pip install pyyaml")


@pytest.mark.parametrize(
    ("module", "faulty", "fix"),
    [
        ("onnx", {"requirements", "onnxruntime"}, "first mend what is said about requirements"),
        ("onnx", {"onnxruntime"}, "pip install --force-reinstall --no-deps onnx==1.2"),
        ("onnxruntime", {"onnxruntime"}, "first mend what is said about onnxruntime"),
        ("onnxruntime", {"requirements", "onnxruntime"}, "first mend what is said about requirements and onnxruntime"),
    ],
)
def test_the_cause_comes_first(tried, module, faulty, fix):
    assert tried({f"import {module}": "ImportError: no"}, faulty)[0].fix == fix


def test_a_file_that_is_taken_for_a_library(tried, monkeypatch):
    tried({})
    monkeypatch.setattr(installation, "intruder", lambda module, package: f"/here/{module}.py")
    monkeypatch.setattr(
        trial, "attempt", lambda steps: [Outcome(s, [], "E: no" if "rich" in s else None) for s in steps]
    )
    assert libraries.check(())[0].message == "rich cannot be imported, because /here/rich.py is taken for it: E: no"


@pytest.mark.parametrize(
    ("error", "status"),
    [
        ("ModuleNotFoundError: No module named 'torch'", "note"),
        ("UserError: torch is not installed", "note"),
        ("AttributeError: no such thing", "broken"),
        ("the process was ended by SIGILL", "broken"),
    ],
)
def test_a_runtime_that_cannot_be_examined(tried, error, status):
    findings = tried({"runtime ort": error})
    assert [f.status for f in findings if f.check == "runtime ort"] == [status]
    assert error in findings[-1].message


@pytest.mark.parametrize(
    ("instructions", "status", "words"),
    [
        ("", "note", "unknown"),
        ("amx_bf16", "warning", "without AVX2"),
        ("avx2", "note", "without VNNI"),
        ("avx2 avx512", "note", "can saturate"),
        ("avx2 avx_vnni", "ok", "use VNNI, and do not saturate"),
        ("avx2 avx512 avx512_vnni amx_int8", "ok", "use VNNI and AMX, and do not saturate"),
        ("neon", "note", "without dot products"),
        ("neon dotprod", "ok", "use dot products, and"),
        ("neon dotprod i8mm sve", "ok", "use dot products and matrix products, and"),
    ],
)
def test_what_instructions_mean(instructions, status, words):
    found = surroundings.instructions(dataclasses.replace(MACHINE, instructions=frozenset(instructions.split())))
    assert (found.check, found.status) == ("instructions", status)
    assert words in found.message


@pytest.mark.parametrize(
    ("usable", "quota", "words", "threads"),
    [
        (8, None, "all 8 logical cores", None),
        (8, 8.0, "all 8 logical cores", None),
        (2, None, "affinity is 2;", 2),
        (8, 1.5, "the quota of its container is 1.5;", 1),
        (4, 6.0, "affinity is 4 and the quota of its container is 6;", 4),
    ],
)
def test_cores(usable, quota, words, threads):
    found = surroundings.cores(dataclasses.replace(MACHINE, usable_cores=usable, core_quota=quota))
    assert words in found.message
    assert found.status == ("warning" if threads else "ok")
    assert (f"--threads {threads}, " in found.fix) if threads else found.fix is None


def test_memory():
    assert surroundings.memory(4 << 30, None).message == "4.0 GiB available"
    assert surroundings.memory(4 << 30, 6 << 30).message.endswith("of 6.0 GiB that the container may use")
    assert surroundings.memory(1 << 29, None).status == "warning"


@pytest.mark.parametrize(("load", "threads", "status"), [(0.9, 2, "ok"), (1.1, 2, "warning"), (1.1, 8, "ok")])
def test_load(load, threads, status):
    assert surroundings.load(load, threads).status == status


def test_what_is_not_known_is_not_judged():
    checks = [f.check for f in surroundings.check(dataclasses.replace(MACHINE, memory_available=None, load=None))]
    assert checks == ["instructions", "cores", "stdout", "temporary folder"]


def test_stdout(monkeypatch, tmp_path):
    with open(tmp_path / "out", "w", encoding="utf-8") as file:
        monkeypatch.setattr(sys, "stdout", file)
        assert surroundings.output() == Finding("stdout", "ok", "writable, utf-8")
    assert surroundings.output().status == "broken", "closed"
    for encoding in ("ascii", "latin-1", "no-such-encoding"):
        with open(tmp_path / "out", "w", encoding="utf-8") as file:
            monkeypatch.setattr(sys, "stdout", Encoded(file, encoding))
            assert (surroundings.output().status, encoding in surroundings.output().message) == ("warning", True)
    with open(tmp_path / "out", encoding="utf-8") as file:
        monkeypatch.setattr(sys, "stdout", file)
        assert surroundings.output().status == "broken", "for reading"
    monkeypatch.setattr(sys, "stdout", None)
    assert surroundings.output().status == "broken", "none at all"


class Encoded:
    """A stream that claims another encoding."""

    def __init__(self, stream, encoding):
        self.stream, self.encoding, self.closed = stream, encoding, False

    def writable(self):
        return self.stream.writable()


def test_the_temporary_folder(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(surroundings, "_LITTLE_DISK", 0)
    found = surroundings.temporary_folder()
    assert (found.status, found.message.startswith(f"{tmp_path}, ")) == ("ok", True)
    assert not list(tmp_path.iterdir())
    monkeypatch.setenv("TMPDIR", "/no/such/folder")
    assert (surroundings.temporary_folder().status, "TMPDIR" in surroundings.temporary_folder().fix) == (
        "warning",
        True,
    )
    monkeypatch.delenv("TMPDIR")
    monkeypatch.setattr(surroundings, "_LITTLE_DISK", 1 << 80)
    assert surroundings.temporary_folder().status == "warning"
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    assert surroundings.temporary_folder().status == "broken"


@pytest.fixture
def parts(monkeypatch):
    """Replace what the parts of a diagnosis find."""

    def replace(family_=(), needs=(), tried=(), around=()):
        monkeypatch.setattr(family, "check", lambda: list(family_))
        monkeypatch.setattr(installation, "requirements", lambda elsewhere: list(needs))
        monkeypatch.setattr(libraries, "check", lambda faulty: list(tried(faulty) if callable(tried) else tried))
        monkeypatch.setattr(surroundings, "check", lambda machine: iter(around))
        return diagnose()

    return replace


def test_the_worst_comes_first(parts):
    findings = [Finding(status, status, "") for status in ("ok", "note", "warning", "broken", "warning")]
    done = parts(around=findings)
    assert [f.status for f in done.findings] == ["broken", "warning", "warning", "note", "ok", "ok"]
    assert not done.healthy
    assert parts(around=findings[:3]).healthy


def test_versions_that_break_a_library_are_broken(parts):
    def same(faulty):
        assert faulty == {"requirements"}
        return []

    skew = Finding("requirements", "warning", "too old", "pip install it")
    fine = Finding("onnxruntime", "ok", "")
    assert [f.status for f in parts([fine], [skew], same).findings] == ["warning", "ok", "ok"]
    broken = Finding("libraries", "broken", "cannot be imported")
    done = parts([fine], [skew], [broken])
    assert [(f.check, f.status) for f in done.findings[:2]] == [("requirements", "broken"), ("libraries", "broken")]
    assert done.findings[0].fix == skew.fix


def test_a_check_that_fails_is_a_finding(parts, monkeypatch):
    parts()
    monkeypatch.setattr(family, "check", lambda: 1 / 0)
    done = diagnose()
    assert done.findings[0].check == "onnxruntime"
    assert done.findings[0].status == "broken"
    assert "ZeroDivisionError" in done.findings[0].message


def test_the_whole_in_this_installation(graphopt):
    ran = graphopt("doctor", "--json")
    assert ran.err == ""
    done = ran.json
    assert list(done) == ["healthy", "findings", "machine", "versions"]
    assert ran.code == (0 if done["healthy"] else 1)
    assert done["healthy"] == all(f["status"] != "broken" for f in done["findings"])
    assert all(list(f) == ["check", "status", "message", "fix"] for f in done["findings"])
    assert all("\n" not in f["message"] for f in done["findings"])
    assert all(f["fix"] for f in done["findings"] if f["status"] in ("broken", "warning")), "every fault has a fix"
    checks = {f["check"] for f in done["findings"]}
    assert checks >= {"onnxruntime", "requirements", "libraries", "extras", "instructions", "cores", "stdout"}
    assert done["machine"] | {"load": 0, "memory_available": 0} == hardware.machine().to_json() | {
        "load": 0,
        "memory_available": 0,
    }
    assert done["versions"]["numpy"] == installation.version("numpy")
    assert "onnxruntime" in " ".join(done["versions"])


@pytest.fixture
def diagnosed(monkeypatch):
    def replace(*findings):
        done = Diagnosis(findings, MACHINE, {"graphopt": "0.1.0", "onnx": "1.2", "optuna": None})
        monkeypatch.setattr(diagnosis, "diagnose", lambda: done)

    return replace


def test_the_table(graphopt, diagnosed):
    diagnosed(
        Finding("onnxruntime", "broken", "two at once [red]", "pip uninstall -y one"),
        Finding("load", "warning", "busy"),
        Finding("cores", "ok", "all"),
    )
    ran = graphopt("doctor")
    assert (ran.code, ran.err) == (1, "")
    assert ran.out.splitlines() == [
        "broken   onnxruntime  two at once [red]",
        "                      fix: pip uninstall -y one",
        "warning  load         busy",
        "ok       cores        all",
        "",
        "processor  Some CPU (x86_64)",
        "cores      4 physical, 8 logical, 8 for this process",
        "memory     8.0 GiB",
        "system     Some OS, Python 3.11",
        "versions   graphopt 0.1.0, onnx 1.2",
        "",
        "not healthy: broken 1, warnings 1, notes 0",
    ]
    assert graphopt("doctor", "--json").code == 1


def test_warnings_are_healthy(graphopt, diagnosed):
    diagnosed(Finding("load", "warning", "busy", "wait"), Finding("x", "note", "y"))
    ran = graphopt("doctor")
    assert (ran.code, ran.out.splitlines()[-1]) == (0, "healthy: broken 0, warnings 1, notes 1")
    assert graphopt("doctor", "--json").code == 0


BLOCKED = (
    "import sys\nfor name in ('rich', 'yaml', 'numpy', 'onnx', 'onnx_ir', 'onnxruntime', 'ml_dtypes', 'psutil'):\n"
)
BLOCKED += "    sys.modules[name] = None\nsys.argv = ['graphopt', 'doctor', *sys.argv[1:]]\n"
BLOCKED += "from graphopt.cli import main\nmain()"


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_it_needs_no_library_in_its_own_process(tmp_path, options):
    command = [sys.executable, "-c", BLOCKED, *options]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.stderr == ""
    assert done.returncode in (0, 1)
    assert "libraries" in done.stdout


def test_an_installation_where_libraries_are_broken(tmp_path):
    """A numpy that ends the process comes first on the search path."""
    (tmp_path / "numpy").mkdir()
    (tmp_path / "numpy" / "__init__.py").write_text("import os\nos.abort()\n")
    command = [sys.executable, "-m", "graphopt", "doctor", "--json"]
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, "")
    findings = [f for f in json.loads(done.stdout)["findings"] if f["check"] == "libraries"]
    assert [f["status"] for f in findings] == ["broken", "broken", "ok"]
    assert "numpy" in findings[0]["message"]
    assert "SIGABRT" in findings[0]["message"]
    assert "onnxruntime cannot be imported, either, for want of numpy" in findings[1]["message"]
