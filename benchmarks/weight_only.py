"""4-bit weights in blocks for a large half-precision model: time, memory and error, beside onnxruntime's own quantizer.

    python benchmarks/weight_only.py [--gigabytes 3] [--folder FOLDER]

Makes a model of MatMuls with random weights (normal, with outliers) in float16, external data, and quantizes it with each
tool in a process of its own, turn about: block 32, symmetric, MatMulNBits. Seconds are those of loading, quantizing and
saving, with what is imported for it; graphopt's include the hash of the model for its provenance. The processor's seconds
tell more where other programs run. The error is the mean squared one over the mean square of the weights, of all of them.
The folder needs 1.6 times the size of the model.
"""

from __future__ import annotations

import argparse
import json
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx_ir as ir

_SHAPES = ((4096, 4096), (4096, 4096), (4096, 11008), (11008, 4096))
_BLOCK = 32


def make(path: Path, gigabytes: float) -> None:
    """Write the model, one weight at a time."""
    rng = np.random.default_rng(0)
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT16), shape=ir.Shape(["M", 4096]))
    value, nodes, weights, size, number = x, [], [], 0, 0
    sources = {}
    for shape in set(_SHAPES):
        array = rng.standard_normal(shape, np.float32) * 0.02
        array[rng.integers(0, shape[0], 500), rng.integers(0, shape[1], 500)] *= 20
        sources[shape] = array.astype(np.float16)
    while size < gigabytes * 1e9:
        shape = _SHAPES[number % len(_SHAPES)]
        tensor = ir.LazyTensor(
            lambda shape=shape, number=number: ir.tensor(np.roll(sources[shape], number * 7, axis=1)),
            ir.DataType.FLOAT16,
            ir.Shape(shape),
            name=f"w{number}",
        )
        weight = ir.Value(name=tensor.name, type=ir.TensorType(tensor.dtype), shape=tensor.shape, const_value=tensor)
        node = ir.node("MatMul", [value, weight], name=f"product{number}")
        value = node.outputs[0]
        value.name, value.type = f"h{number}", x.type
        nodes.append(node)
        weights.append(weight)
        size, number = size + tensor.nbytes, number + 1
    graph = ir.Graph([x], [value], nodes=nodes, initializers=weights, opset_imports={"": 21}, name="large")
    ir.save(ir.Model(graph, ir_version=10), path, external_data=f"{path.name}.data")


def graphopt(source: Path, output: Path) -> None:
    """Quantize with graphopt, without running the model."""
    import graphopt as tool

    tool.apply(source, ["quantize-weights{form=matmulnbits}"], output, verify=False)


def onnxruntime(source: Path, output: Path) -> None:
    """Quantize with onnxruntime's MatMulNBits quantizer as it comes."""
    import onnx
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    quantizer = MatMulNBitsQuantizer(onnx.load(source), bits=4, block_size=_BLOCK, is_symmetric=True)
    quantizer.process()
    quantizer.model.save_model_to_file(str(output), use_external_data_format=True)


TOOLS = {"graphopt": graphopt, "onnxruntime": onnxruntime}


def error(source: Path, output: Path) -> float:
    """Return the squared error of all weights over their squares."""
    wrong = whole = 0.0
    products = [node for node in ir.load(source).graph if node.op_type == "MatMul"]
    packed = [node for node in ir.load(output).graph if node.op_type == "MatMulNBits"]
    for before, after in zip(products, packed, strict=True):
        weight = array(before.inputs[1]).astype(np.float32)
        bytes_, scales = map(array, after.inputs[1:3])
        integers = np.stack([bytes_ & 15, bytes_ >> 4], -1).reshape(len(bytes_), -1, _BLOCK).astype(np.float32) - 8
        decoded = integers * scales.reshape(len(bytes_), -1, 1).astype(np.float32)
        wrong += float(np.sum((decoded.reshape(len(bytes_), -1)[:, : len(weight)].T - weight) ** 2, dtype=np.float64))
        whole += float(np.sum(weight**2, dtype=np.float64))
    return wrong / whole


def array(value: ir.Value | None) -> np.ndarray:
    """Return the elements of an initializer."""
    assert value is not None
    assert value.const_value is not None
    return value.const_value.numpy().copy()


def main() -> None:
    """Quantize with both, and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--gigabytes", type=float, default=3.0)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--rounds", type=int, default=3, help="how often each tool runs")
    parser.add_argument("--only", choices=TOOLS, help="quantize FOLDER/model.onnx here, and print what it took")
    args = parser.parse_args()
    if args.only:
        run(args.only, args.folder)
        return
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        make(folder / "model.onnx", args.gigabytes)
        print(f"{'':12} seconds  processor  peak MB  written MB  error", flush=True)
        for _ in range(args.rounds):
            for tool in TOOLS:
                command = [sys.executable, __file__, "--only", tool, "--folder", str(folder)]
                output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                seconds, processor, peak = json.loads(output.splitlines()[-1])
                files = list(folder.glob(f"{tool}.onnx*"))
                written = sum(file.stat().st_size for file in files)
                wrong = error(folder / "model.onnx", folder / f"{tool}.onnx")
                print(
                    f"{tool:12} {seconds:7.1f} {processor:10.1f} {peak / 1e6:8.0f} {written / 1e6:11.0f}  {wrong:.6f}",
                    flush=True,
                )
                for file in files:
                    file.unlink()


def run(tool: str, folder: Path) -> None:
    """Quantize a folder's model; print the seconds, those of the processor, and the largest memory in bytes."""
    start = time.perf_counter()
    TOOLS[tool](folder / "model.onnx", folder / f"{tool}.onnx")
    seconds = time.perf_counter() - start
    used = resource.getrusage(resource.RUSAGE_SELF)  # whose ru_maxrss would count the process that started this one
    peak = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"))
    assert peak is not None
    print(json.dumps([seconds, used.ru_utime + used.ru_stime, int(peak[1]) * 1024]))


if __name__ == "__main__":
    main()
