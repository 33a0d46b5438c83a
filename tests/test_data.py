"""Data sets: what is read equals what was written, in batches, and what does not fit is told."""

from __future__ import annotations

import gc
import tracemalloc
import zipfile

import numpy as np
import onnx_ir as ir
import pytest

from graphopt import inputs
from graphopt.data import ArrayData, batch_size, open_data
from graphopt.errors import UserError
from graphopt.runtime import Port

F32, I64 = ir.DataType.FLOAT, ir.DataType.INT64
PORTS = (Port("x", F32, ("N", 3)), Port("ids", I64, ("N",)))
X = np.arange(30, dtype=np.float32).reshape(10, 3)
IDS = np.arange(10)
LABELS = np.arange(10) % 4


@pytest.fixture
def npz(tmp_path):
    def write(compressed=False, **arrays):
        (np.savez_compressed if compressed else np.savez)(tmp_path / "d.npz", **arrays)
        return tmp_path / "d.npz"

    return write


def collect(data, size, limit=None):
    batches = list(data.batches(size, limit))
    merged = {key: np.concatenate([feeds[key] for feeds, _ in batches]) for key in batches[0][0]}
    labels = [labels for _, labels in batches]
    return merged, None if labels[0] is None else np.concatenate(labels), [len(feeds["x"]) for feeds, _ in batches]


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize(("size", "sizes"), [(1, [1] * 10), (4, [4, 4, 2]), (5, [5, 5]), (10, [10]), (64, [10])])
def test_npz_in_batches_is_the_array(npz, size, sizes, compressed):
    data = open_data(npz(compressed, x=X, ids=IDS, labels=LABELS))
    for _ in range(2):  # a data set can be read several times
        merged, labels, seen = collect(data, size)
        assert seen == sizes
        np.testing.assert_array_equal(merged["x"], X)
        np.testing.assert_array_equal(merged["ids"], IDS)
        np.testing.assert_array_equal(labels, LABELS)
        assert merged["x"].dtype == np.float32


@pytest.mark.parametrize("source", ["npz", "arrays"])
def test_limit_cuts_within_a_batch(npz, source):
    arrays = {"x": X, "labels": LABELS}
    data = open_data(npz(**arrays) if source == "npz" else arrays)
    merged, labels, sizes = collect(data, 4, 6)
    assert sizes == [4, 2]
    np.testing.assert_array_equal(merged["x"], X[:6])
    np.testing.assert_array_equal(labels, LABELS[:6])


def test_without_labels_there_is_no_target(npz):
    assert [labels for _, labels in open_data(npz(x=X)).batches(5)] == [None, None]


def test_fortran_order_big_shapes_and_bools(npz):
    cube = np.arange(120.0).reshape(10, 3, 4)
    flags = IDS % 2 == 0
    data = open_data(npz(x=np.asfortranarray(cube), c=cube, flags=flags))
    merged, _, _ = collect(data, 4)
    np.testing.assert_array_equal(merged["x"], cube)
    np.testing.assert_array_equal(merged["c"], cube)
    np.testing.assert_array_equal(merged["flags"], flags)


def test_names_with_slashes_and_dots(npz):
    data = open_data(npz(**{"x": X, "encoder/ids.1": IDS}))
    np.testing.assert_array_equal(collect(data, 3)[0]["encoder/ids.1"], IDS)


@pytest.mark.parametrize("compressed", [False, True])
def test_no_more_than_a_batch_is_in_memory(npz, compressed):
    """Promise 6: cost grows with one batch, not with the calibration set."""
    path = npz(compressed, x=np.zeros((512, 64, 256), np.float32))  # 32 MiB
    tracemalloc.start()
    data = open_data(path)
    data.check((Port("x", F32, ("N", 64, 256)),))
    samples = sum(len(feeds["x"]) for feeds, _ in data.batches(8))  # batches of 512 KiB
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert samples == 512
    assert peak < 4 << 20


def test_digest_is_of_the_content(npz, tmp_path):
    first = open_data(npz(x=X)).digest()
    (tmp_path / "d.npz").rename(tmp_path / "moved.npz")
    assert open_data(tmp_path / "moved.npz").digest() == first
    assert open_data(npz(x=X + 1)).digest() != first
    assert open_data({"x": X}).digest() == open_data({"x": X.copy()}).digest()
    assert open_data({"x": X}).digest() != open_data({"x": X + 1}).digest()
    assert open_data({"x": X}).digest() != open_data({"x": X.astype(np.float64)}).digest()
    assert open_data({"x": np.asfortranarray(X)}).digest() == open_data({"x": X}).digest()


def test_data_is_passed_through():
    data = ArrayData("a", {"x": X})
    assert open_data(data) is data


def test_data_that_fits(npz):
    open_data(npz(x=X, ids=IDS)).check(PORTS)
    open_data(npz(x=X, ids=IDS, labels=LABELS)).check(PORTS, labels=True)
    open_data(npz(x=X, labels=LABELS)).check((PORTS[0], Port("labels", I64, ("N",))))
    open_data(npz(x=X)).check((Port("x", F32, (4, "any")),))  # the first axis counts samples, whatever the batch
    open_data(npz(x=X)).check((Port("x", F32, None),))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": X, "idx": IDS}, "the model has no input 'idx'; did you mean 'ids'?"),
        ({"x": X, "ids": IDS, "zzz": IDS}, "the model has no input 'zzz'; known: ids, x"),
        ({"x": X}, "no array for the model's input 'ids'; known: x"),
        ({"x": X.astype(np.float64), "ids": IDS}, "'x' is float64, but the model wants float32; convert it"),
        ({"x": X, "ids": IDS.astype(np.int32)}, "'ids' is int32, but the model wants int64; convert it"),
        ({"x": X[:, :2], "ids": IDS}, "'x' has shape [10, 2], but the model wants [N, 3]; reshape it"),
        ({"x": X[:, :, None], "ids": IDS}, "'x' has shape [10, 3, 1], but the model wants [N, 3]; reshape it"),
        ({"x": X, "ids": IDS[:, None]}, "'ids' has shape [10, 1], but the model wants [N]; reshape it"),
        ({"x": X, "ids": IDS[:7]}, "arrays disagree on the number of samples: x 10, ids 7"),
        ({"x": X, "ids": IDS, "labels": LABELS[:9]}, "the number of samples: x 10, ids 10, labels 9"),
        ({"x": X[:0], "ids": IDS[:0]}, "holds no samples"),
        ({}, "holds no samples"),
        ({"x": X, "ids": np.int64(3)}, "array 'ids' has no axis; the first axis must count samples"),
    ],
)
@pytest.mark.parametrize("source", ["npz", "arrays"])
def test_data_that_does_not_fit(npz, arrays, message, source):
    with pytest.raises(UserError) as error:
        open_data(npz(**arrays) if source == "npz" else arrays).check(PORTS)
    assert message in str(error.value)
    assert str(error.value).startswith(str(npz()) if source == "npz" else "arrays")


def test_missing_labels_are_told_when_they_are_needed(npz):
    with pytest.raises(UserError, match="has no 'labels' array, which the metric needs"):
        open_data(npz(x=X, ids=IDS)).check(PORTS, labels=True)


def test_inputs_that_are_no_tensors_are_told(npz):
    with pytest.raises(UserError, match="input 'x' is not a tensor"):
        open_data(npz(x=X)).check((Port("x", None, None),))


@pytest.mark.parametrize("compressed", [False, True])
def test_files_that_are_no_npz(npz, tmp_path, compressed):
    whole = npz(compressed, x=np.random.default_rng(0).random((100, 100)), ids=np.arange(100))
    content = whole.read_bytes()
    (tmp_path / "cut.npz").write_bytes(content[: len(content) // 2])
    (tmp_path / "empty.npz").write_bytes(b"")
    (tmp_path / "text.npz").write_text("x,y\n1,2\n")
    np.save(tmp_path / "single.npy", X)
    np.savez(tmp_path / "objects.npz", x=np.array([{}, None], object))
    with zipfile.ZipFile(tmp_path / "foreign.npz", "w") as archive:
        archive.writestr("readme.txt", "hello, this is not an array")
    for name in ("cut.npz", "empty.npz", "text.npz", "single.npy", "objects.npz", "foreign.npz"):
        with pytest.raises(UserError, match=r"not a \.npz file of plain arrays .*; write it with numpy\.savez"):
            open_data(tmp_path / name)
    with pytest.raises(UserError, match="no such file; check the path"):
        open_data(tmp_path / "missing.npz")
    with pytest.raises(UserError, match="directory"):
        open_data(tmp_path)


def test_a_member_without_the_suffix_of_arrays(tmp_path, npz):
    """A zip tool may repack an .npz; a member not named *.npy is no array, whatever it holds."""
    with zipfile.ZipFile(npz(x=X)) as archive, zipfile.ZipFile(tmp_path / "bare.npz", "w") as bare:
        bare.writestr("x", archive.read("x.npy"))
    with pytest.raises(UserError, match=r"not a \.npz file of plain arrays"):
        list(open_data(tmp_path / "bare.npz").batches(4))


def test_an_array_shorter_than_its_header_says(tmp_path, npz):
    with zipfile.ZipFile(npz(x=X)) as archive, zipfile.ZipFile(tmp_path / "short.npz", "w") as short:
        short.writestr("x.npy", archive.read("x.npy")[:-8])
    with pytest.raises(UserError, match="shorter than its header says"):
        list(open_data(tmp_path / "short.npz").batches(4))


@pytest.mark.parametrize("compressed", [False, True])
def test_damaged_bytes_are_told(npz, compressed):
    path = npz(compressed, x=np.random.default_rng(0).random((1000, 10)).astype(np.float32))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"d\.npz"):
        list(open_data(path).batches(64))


@pytest.fixture
def factory(tmp_path, monkeypatch):
    """Write a module `made` with a factory and open it."""
    count = iter(range(1000))

    def open_factory(body):
        name = f"made_{next(count)}_{tmp_path.name}"
        (tmp_path / f"{name}.py").write_text(f"import numpy as np\nX = np.arange(12, dtype=np.float32)\n{body}")
        return open_data(f"{name}:f")

    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return open_factory


FX = (Port("x", F32, ("N",)),)


def test_a_factory_is_called_for_every_reading(factory):
    data = factory("def f():\n  for i in range(3):\n    yield {'x': X[4*i:4*i+4]}, [i] * 4")
    for _ in range(2):
        merged, labels, sizes = collect(data, 64)
        assert sizes == [4, 4, 4]
        assert merged["x"].tolist() == list(range(12))
        assert labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    data.check(FX, labels=True)
    assert collect(data, 1, 6)[2] == [4, 2]
    assert collect(data, 1, 4)[2] == [4]


def test_a_factory_without_targets(factory):
    data = factory("def f():\n  return [({'x': X}, None)]")
    data.check(FX)
    assert collect(data, 1)[1] is None
    with pytest.raises(UserError, match="has no 'labels' array"):
        data.check(FX, labels=True)


def test_a_factory_is_named_by_where_it_lies(factory):
    data = factory("def f():\n  return [({'x': X}, None)]")
    assert data.digest() == data.name
    assert data.name.endswith(":f")


@pytest.mark.parametrize(
    "body",
    [
        "def f():\n  return [X]",
        "def f():\n  return [(X, None)]",
        "def f():\n  return [({}, None)]",
        "def f():\n  return [({'x': np.float32(1)}, None)]",
        "def f():\n  return [3]",
        "def f():\n  return [({'x': X}, 1, 2)]",
        "def f():\n  return None",
        "def f():\n  return 7",
        "def f():\n  return [({'x': X}, 5)]",
    ],
)
def test_a_factory_that_yields_junk(factory, body):
    with pytest.raises(UserError, match=r"made_.*:f: must yield \(inputs, target\) with inputs a non-empty dict"):
        list(factory(body).batches(4))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("def f():\n  return []", "yields no batches"),
        ("def f():\n  return [({'x': X[:0]}, None)]", "holds no samples|yields no batches"),
        ("def f():\n  return [({'y': X}, None)]", "the model has no input 'y'; known: x"),
        ("def f():\n  return [({'x': X.astype(int)}, None)]", "'x' is int64, but the model wants float32"),
        ("def f():\n  return [({'x': X}, [1, 2])]", "arrays disagree on the number of samples: x 12, labels 2"),
    ],
)
def test_a_factory_whose_batches_do_not_fit(factory, body, message):
    with pytest.raises(UserError, match=message):
        factory(body).check(FX)


def test_a_factory_that_cannot_be_found(factory):
    for body, message in [("g = 1", "has no 'f'"), ("f = 3", "is not a function")]:
        with pytest.raises(UserError, match=message):
            factory(body)
    with pytest.raises(UserError, match="cannot import no_such_module_here"):
        open_data("no_such_module_here:f")


def test_batch_size_follows_a_model_that_fixes_it():
    assert batch_size((Port("x", F32, ("N", 3)),)) == 64
    assert batch_size((Port("x", F32, ("N", 3)),), 1) == 1
    assert batch_size((Port("x", F32, (4, 3)), Port("y", F32, ("N", 3)))) == 4
    assert batch_size((Port("x", F32, None),), 7) == 7
    assert batch_size((Port("x", F32, ()),), 7) == 7


@pytest.mark.parametrize("source", ["npz", "arrays"])
def test_samples_to_verify_on(npz, source):
    data = open_data(npz(x=X) if source == "npz" else {"x": X})
    dynamic = inputs.from_data(data, (Port("x", F32, ("N", 3)),))
    assert [len(feeds["x"]) for feeds in dynamic] == [8, 2, 1]
    fixed = inputs.from_data(data, (Port("x", F32, (5, 3)),))
    assert [len(feeds["x"]) for feeds in fixed] == [5, 5]


@pytest.mark.parametrize("source", ["npz", "arrays"])
def test_a_model_that_fixes_its_batch_gets_only_whole_ones(npz, source):
    """10 samples are two batches of 4; the two that are left over are filled up."""
    data = open_data(npz(x=X) if source == "npz" else {"x": X})
    assert [len(feeds["x"]) for feeds in inputs.from_data(data, (Port("x", F32, (4, 3)),), batches=3)] == [4, 4, 4]


def test_a_reading_that_is_dropped_half_way_closes_the_file(npz):
    """A file left open would be a ResourceWarning, which is an error here."""
    batches = open_data(npz(x=X)).batches(2)
    next(batches)
    batches.close()
    del batches
    gc.collect()
