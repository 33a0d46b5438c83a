"""Models of transformers: example inputs and names that need no help, and refusals that say what helps."""

from __future__ import annotations

import json

import pytest

torch = pytest.importorskip("torch", reason="the extra 'torch' is not installed")
transformers = pytest.importorskip("transformers")

import graphopt as package  # noqa: E402
from graphopt.errors import UserError  # noqa: E402
from graphopt.exporting import pretrained  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # torch's and transformers' own

TEXT = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 32,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
PICTURE = {**TEXT, "image_size": 16, "patch_size": 8}
BART = {
    "vocab_size": 50,
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "max_position_embeddings": 32,
}


def made(name, **fields):
    kind = getattr(transformers, name)
    return kind(kind.config_class(**fields)).eval()


@pytest.fixture
def bert():
    return made("BertModel", **TEXT)


def test_a_folder_gives_readable_names_and_open_axes(graphopt, bert, tmp_path):
    bert.save_pretrained(tmp_path / "bert")
    ran = graphopt("export", tmp_path / "bert", "-o", tmp_path / "bert.onnx", "--json")
    assert ran.code == 0, ran.err
    assert ran.json["inputs"] == dict.fromkeys(["input_ids", "attention_mask"], "int64 [batch, sequence]")
    assert ran.json["outputs"] == {
        "last_hidden_state": "float [batch, sequence, 16]",
        "pooler_output": "float [batch, 16]",
    }
    assert "Loading weights" not in ran.err


def test_a_module_at_hand_gives_the_same_names(bert, tmp_path):
    done = package.export(bert, tmp_path / "bert.onnx")
    assert done.met
    assert list(done.outputs) == ["last_hidden_state", "pooler_output"]


def test_tuples_of_outputs_are_numbered(tmp_path):
    module = made("BertModel", **TEXT, output_hidden_states=True)
    names = pretrained.prepare(module, pretrained.example(module))
    assert names == ("last_hidden_state", "pooler_output", "hidden_states.0", "hidden_states.1")


def test_caches_are_switched_off_and_tuples_get_names():
    module = made("GPT2LMHeadModel", vocab_size=50, n_embd=16, n_layer=1, n_head=2, n_positions=32, return_dict=False)
    assert pretrained.prepare(module, pretrained.example(module)) == ("logits",)


def test_inputs_that_the_user_gives_come_before_examples(bert, tmp_path):
    done = package.export(bert, tmp_path / "bert.onnx", inputs=["input_ids=3x5:int64"])
    assert done.met
    assert done.inputs == {"input_ids": "int64 [batch, sequence]"}


def test_padding_is_among_the_examples(bert):
    mask = pretrained.example(bert)["attention_mask"]
    assert 0 < int((mask == 0).sum()) < mask[1].numel()
    assert bool(mask[0].all())


@pytest.mark.parametrize(
    ("name", "fields", "shapes"),
    [
        ("ViTModel", {**PICTURE, "image_size": [16, 24]}, {"pixel_values": (2, 3, 16, 24)}),
        ("VideoMAEModel", {**PICTURE, "num_frames": 4}, {"pixel_values": (2, 4, 3, 16, 16)}),
        ("SiglipVisionModel", PICTURE, {"pixel_values": (2, 3, 16, 16)}),
        (
            "CLIPModel",
            {"text_config": TEXT, "vision_config": PICTURE},
            {"input_ids": (2, 16), "attention_mask": (2, 16), "pixel_values": (2, 3, 16, 16)},
        ),
        ("BartModel", BART, {"input_ids": (2, 16), "attention_mask": (2, 16), "decoder_input_ids": (2, 8)}),
        (
            "WhisperModel",
            {**BART, "num_mel_bins": 8, "max_source_positions": 20, "max_target_positions": 16, "pad_token_id": 0},
            {"input_features": (2, 8, 40), "decoder_input_ids": (2, 8)},
        ),
        ("ASTModel", {**TEXT, "max_length": 32, "num_mel_bins": 16}, {"input_values": (2, 32, 16)}),
        (
            "Wav2Vec2Model",
            {**TEXT, "conv_dim": [8] * 7, "num_conv_pos_embedding_groups": 2},
            {"input_values": (2, 16000)},
        ),
    ],
)
def test_examples_fit_every_kind_of_network(name, fields, shapes):
    module = made(name, **fields)
    inputs = pretrained.example(module)
    assert {key: tuple(tensor.shape) for key, tensor in inputs.items()} == shapes
    assert pretrained.prepare(module, inputs)
    axes = pretrained.axes(inputs)
    assert all(axes[key][0] == "batch" for key in shapes)
    assert axes.get("input_values", {}).get(1) == ("samples" if shapes.get("input_values") == (2, 16000) else None)


def test_weights_that_lack_tensors_are_refused(bert, graphopt, tmp_path):
    state = {key: tensor for key, tensor in bert.state_dict().items() if "pooler" not in key}
    bert.save_pretrained(tmp_path / "bert", state_dict=state)
    ran = graphopt("export", tmp_path / "bert", "-o", tmp_path / "bert.onnx")
    assert ran.code == 1
    assert "lack 2 tensors of BertModel" in ran.error
    assert "pooler.dense.bias" in ran.error
    assert not (tmp_path / "bert.onnx").exists()


@pytest.mark.parametrize(
    ("architecture", "said"),
    [
        ("NoSuchModel", "architecture NoSuchModel is not one of"),
        ("BertConfig", "BertConfig is not one of"),
        ("BertTokenizer", "not one of"),
    ],
)
def test_an_architecture_that_is_none(bert, graphopt, tmp_path, architecture, said):
    bert.save_pretrained(tmp_path / "bert")
    config = json.loads((tmp_path / "bert" / "config.json").read_text())
    (tmp_path / "bert" / "config.json").write_text(json.dumps({**config, "architectures": [architecture]}))
    ran = graphopt("export", tmp_path / "bert", "-o", tmp_path / "bert.onnx")
    assert ran.code == 1
    assert said in ran.error


def test_a_length_that_forward_is_written_for_is_fixed_in_all_inputs(tmp_path, capfd):
    module = made(
        "FunnelModel", vocab_size=50, block_sizes=[1, 1], d_model=16, n_head=2, d_head=8, d_inner=24,
        num_decoder_layers=1,
    )  # fmt: skip
    done = package.export(module, tmp_path / "funnel.onnx")
    assert done.met
    assert set(done.inputs.values()) == {"int64 [batch, 16]"}
    assert [note for note in done.notes if "axis 1 (sequence) of 'input_ids' is fixed to 16" in note]
    assert [check.sizes for check in done.checks] == [{"batch": 2}, {"batch": 3}, {"batch": 1}]
    assert not capfd.readouterr().err


def test_damaged_weights_are_told(bert, graphopt, tmp_path):
    bert.save_pretrained(tmp_path / "bert")
    (tmp_path / "bert" / "model.safetensors").write_bytes(b"")
    ran = graphopt("export", tmp_path / "bert", "-o", tmp_path / "bert.onnx")
    assert ran.code == 1
    assert "cannot be loaded" in ran.error


def test_a_decoder_with_a_configuration_of_its_own(tmp_path):
    module = made("T5Model", vocab_size=50, d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2)
    done = package.export(module, tmp_path / "t5.onnx")
    assert done.met
    assert done.outputs == {
        "last_hidden_state": "float [batch, decoder_sequence, 16]",
        "encoder_last_hidden_state": "float [batch, sequence, 16]",
    }


@pytest.mark.parametrize("text", ["[]", '{"model_type": "nothing"}', "{", '{"architectures": "BertModel"}'])
def test_a_configuration_that_is_none(graphopt, tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    ran = graphopt("export", tmp_path, "-o", tmp_path / "bert.onnx")
    assert ran.code == 1, ran.err
    assert str(tmp_path) in ran.error


def test_narrow_weights_are_exported_as_the_type_that_is_asked_for(bert, tmp_path):
    bert.to(torch.bfloat16).save_pretrained(tmp_path / "bert")
    done = package.export(tmp_path / "bert", tmp_path / "bert.onnx")
    assert done.outputs["pooler_output"] == "float [batch, 16]"


def test_an_unknown_kind_of_input_is_told(bert):
    bert.main_input_name = "past_values"
    with pytest.raises(UserError, match=r"'past_values'; give --input past_values="):
        pretrained.example(bert)


def test_inputs_that_do_not_fit_are_told(bert):
    with pytest.raises(UserError, match="BertModel: does not run on the example inputs input_ids"):
        pretrained.prepare(bert, {"input_ids": torch.full((2, 4), 50)})


def test_other_modules_are_not_known():
    assert not pretrained.knows(torch.nn.Linear(2, 2))
