"""4-bit weights in blocks for a large half-precision model: time, memory and error, beside onnxruntime's own quantizer.

    python benchmarks/weight_only.py [--gigabytes 3] [--folder FOLDER]

Makes a model of MatMuls with random weights (normal, with outliers) in float16, external data, and quantizes it with each
tool in a process of its own: block 32, symmetric, MatMulNBits. The error is the mean squared one over the mean square of
the weights, on a few of them. The folder needs twice the size of the model.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
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


def error(source: Path, output: Path, number: int) -> float:
    """Return the relative squared error of one weight."""
    original, made = ir.load(source), ir.load(output)
    weight = original.graph.initializers[f"w{number}"].const_value.numpy().astype(np.float32)  # type: ignore[union-attr]
    node = [n for n in made.graph if n.op_type == "MatMulNBits"][number]
    packed, scales = (v.const_value.numpy() for v in node.inputs[1:3])  # type: ignore[union-attr]
    columns = packed.shape[0]
    integers = np.stack([packed & 15, packed >> 4], -1).reshape(columns, -1, _BLOCK).astype(np.float32) - 8
    decoded = (integers * scales.reshape(columns, -1, 1).astype(np.float32)).reshape(columns, -1).T[: len(weight)]
    return float(np.mean((decoded - weight) ** 2) / np.mean(weight**2))


def main() -> None:
    """Quantize with both, and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--gigabytes", type=float, default=3.0)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--only", choices=TOOLS, help="quantize FOLDER/model.onnx here, and print seconds and bytes")
    args = parser.parse_args()
    if args.only:
        start = time.perf_counter()
        TOOLS[args.only](args.folder / "model.onnx", args.folder / f"{args.only}.onnx")
        print(json.dumps([time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024]))
        return
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        make(folder / "model.onnx", args.gigabytes)
        print(f"{'':12} seconds  peak MB   written MB  error of three weights")
        for tool in TOOLS:
            command = [sys.executable, __file__, "--only", tool, "--folder", str(folder)]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            seconds, peak = json.loads(output.splitlines()[-1])
            written = sum(file.stat().st_size for file in folder.glob(f"{tool}.onnx*"))
            errors = " ".join(f"{error(folder / 'model.onnx', folder / f'{tool}.onnx', n):.5f}" for n in (0, 2, 3))
            print(f"{tool:12} {seconds:7.1f} {peak / 1e6:8.0f} {written / 1e6:12.0f}  {errors}", flush=True)
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
