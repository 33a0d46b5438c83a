"""Which architectures of Hugging Face's transformers survive export and optimization?

    python benchmarks/architectures.py [--only NAME...] [--jobs 1] [--out rows.json]

Each is built from its configuration at reduced width, with random weights (nothing is downloaded), saved as a folder,
and taken through `graphopt.export` and `graphopt.optimize` without data. Constants that initialization leaves at zero
or one (biases, position tables, statistics of batch normalization, layer scales) are made random as well, so that no
part of the network is invisible to the comparison. Every architecture gets a child process with a time limit.

Columns: whether the file was exported and agrees with PyTorch at all sizes tried, the smallest signal-to-noise ratio
of an output in dB, nodes before simplification, after it and after `optimize`, whether the optimized model computes
the same on inputs that the optimizer did not see ("untouched" where it found none to verify with), seconds, and the reason for what failed or was given up.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import math
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

LIMIT_SECONDS = 240

_TEXT: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
}
_GROUPED = {**_TEXT, "num_key_value_heads": 2, "head_dim": 8}
_PICTURE: dict[str, Any] = {
    "image_size": 32,
    "patch_size": 8,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
}
_STAGES: dict[str, Any] = {"depths": [1, 1, 1, 1], "hidden_sizes": [16, 16, 32, 32]}
_SOUND: dict[str, Any] = {
    **{key: value for key, value in _TEXT.items() if key != "max_position_embeddings"},
    "conv_dim": [16] * 7,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}
_BART: dict[str, Any] = {
    "vocab_size": 128,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "max_position_embeddings": 64,
}
_WHISPER: dict[str, Any] = {
    **{key: value for key, value in _BART.items() if key != "max_position_embeddings"},
    "num_mel_bins": 16,
    "max_source_positions": 32,
    "max_target_positions": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
}
_ENDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}

ARCHITECTURES: dict[str, dict[str, dict[str, Any]]] = {
    "vision": {
        "ViTForImageClassification": _PICTURE,
        "DeiTForImageClassification": _PICTURE,
        "BeitForImageClassification": {**_PICTURE, "use_relative_position_bias": True},
        "Dinov2Model": _PICTURE,
        "Dinov2WithRegistersModel": _PICTURE,
        "SwinForImageClassification": {
            "image_size": 32, "patch_size": 2, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4,
        },
        "Swinv2ForImageClassification": {
            "image_size": 32, "patch_size": 2, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4,
        },
        "ConvNextForImageClassification": {**_STAGES, "image_size": 64},
        "ConvNextV2ForImageClassification": {**_STAGES, "image_size": 64},
        "ResNetForImageClassification": {**_STAGES, "embedding_size": 16},
        "RegNetForImageClassification": {**_STAGES, "embedding_size": 16, "groups_width": 8},
        "MobileNetV1ForImageClassification": {"image_size": 64, "depth_multiplier": 0.25},
        "MobileNetV2ForImageClassification": {"image_size": 64, "depth_multiplier": 0.25},
        "MobileViTForImageClassification": {
            "image_size": 64, "hidden_sizes": [16, 24, 32], "neck_hidden_sizes": [8, 8, 16, 16, 24, 32, 64],
        },
        "SegformerForSemanticSegmentation": {
            "depths": [1, 1, 1, 1], "hidden_sizes": [8, 16, 24, 32], "num_attention_heads": [1, 2, 2, 4],
            "decoder_hidden_size": 32,
        },
        "DPTForDepthEstimation": {
            **_PICTURE, "num_hidden_layers": 4, "backbone_out_indices": [0, 1, 2, 3], "fusion_hidden_size": 16,
            "neck_hidden_sizes": [8, 16, 16, 16],
        },
        "YolosForObjectDetection": {**_PICTURE, "image_size": [32, 48], "num_detection_tokens": 5},
        "PoolFormerForImageClassification": {
            "depths": [1, 1, 1, 1], "hidden_sizes": [8, 16, 24, 32],
        },
    },
    "text encoder": {
        "BertForSequenceClassification": _TEXT,
        "DistilBertForMaskedLM": {
            "vocab_size": 128, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64, "max_position_embeddings": 64,
        },
        "RobertaForTokenClassification": _TEXT,
        "AlbertModel": {**_TEXT, "embedding_size": 16},
        "ElectraForPreTraining": {**_TEXT, "embedding_size": 16},
        "DebertaV2Model": {
            **_TEXT, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 8,
            "max_relative_positions": 16,
        },
        "MPNetModel": _TEXT,
        "MobileBertModel": {**_TEXT, "embedding_size": 16, "intra_bottleneck_size": 16, "true_hidden_size": 16},
        "FunnelModel": {
            "vocab_size": 128, "block_sizes": [1, 1], "d_model": 32, "n_head": 4, "d_head": 8, "d_inner": 64,
            "num_decoder_layers": 1,
        },
        "ModernBertModel": {**_TEXT, **_ENDS, "local_attention": 8, "global_attn_every_n_layers": 2,
                            "cls_token_id": 1, "sep_token_id": 2},
    },
    "decoder": {
        "GPT2LMHeadModel": {"vocab_size": 128, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
        "GPTNeoForCausalLM": {
            "vocab_size": 128, "hidden_size": 32, "num_layers": 2, "num_heads": 4, "window_size": 8,
            "attention_types": [[["global", "local"], 1]], "max_position_embeddings": 64,
        },
        "GPTNeoXForCausalLM": _TEXT,
        "GPTJForCausalLM": {
            "vocab_size": 128, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "rotary_dim": 4,
        },
        "OPTForCausalLM": {
            "vocab_size": 128, "hidden_size": 32, "word_embed_proj_dim": 32, "num_hidden_layers": 2, "ffn_dim": 64,
            "num_attention_heads": 4, "max_position_embeddings": 64,
        },
        "BloomForCausalLM": {"vocab_size": 128, "hidden_size": 32, "n_layer": 2, "n_head": 4},
        "LlamaForCausalLM": _GROUPED,
        "MistralForCausalLM": {**_GROUPED, "sliding_window": 8},
        "Qwen2ForCausalLM": _GROUPED,
        "Qwen3ForCausalLM": _GROUPED,
        "GemmaForCausalLM": _GROUPED,
        "Gemma2ForCausalLM": {**_GROUPED, "sliding_window": 8},
        "PhiForCausalLM": {**_TEXT, **_ENDS},
        "Phi3ForCausalLM": {**_TEXT, **_ENDS, "num_key_value_heads": 2},
        "FalconForCausalLM": _TEXT,
        "OlmoForCausalLM": {**_TEXT, **_ENDS},
    },
    "encoder-decoder": {
        "T5ForConditionalGeneration": {
            "vocab_size": 128, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4,
        },
        "BartForConditionalGeneration": _BART,
        "MarianMTModel": {**_BART, "decoder_vocab_size": 128, "pad_token_id": 0, "decoder_start_token_id": 0},
        "PegasusForConditionalGeneration": _BART,
    },
    "audio": {
        "Wav2Vec2ForCTC": _SOUND,
        "HubertModel": _SOUND,
        "WavLMModel": _SOUND,
        "WhisperForConditionalGeneration": _WHISPER,
        "ASTForAudioClassification": {
            **{key: value for key, value in _PICTURE.items() if key != "image_size"}, "max_length": 64,
            "num_mel_bins": 32, "frequency_stride": 8, "time_stride": 8,
        },
    },
    "multimodal": {
        "CLIPTextModelWithProjection": {**_TEXT, **_ENDS, "projection_dim": 16},
        "CLIPVisionModelWithProjection": {**_PICTURE, "projection_dim": 16},
        "CLIPModel": {"text_config": {**_TEXT, **_ENDS}, "vision_config": _PICTURE, "projection_dim": 16},
        "SiglipTextModel": {**_TEXT, "projection_size": 32},
        "SiglipVisionModel": _PICTURE,
        "VideoMAEModel": {**_PICTURE, "num_frames": 4},
    },
}  # fmt: skip
"""Kind of network -> class of transformers -> fields of its configuration."""

_FLAT = {name: fields for kind in ARCHITECTURES.values() for name, fields in kind.items()}


def build(name: str, folder: Path) -> None:
    """Save a small network with random weights as a folder of transformers."""
    import torch
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(0)
    kind = getattr(transformers, name)
    module = kind(kind.config_class(**_FLAT[name])).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
        for key, buffer in module.named_buffers():
            if key.endswith("running_mean"):
                buffer.add_(torch.randn_like(buffer) * 0.1)
            elif key.endswith("running_var"):
                buffer.mul_(torch.rand_like(buffer) + 0.5)
    module.save_pretrained(folder)


def take(name: str) -> dict[str, Any]:
    """Take one architecture through export and optimization, and say what came of it."""
    import graphopt
    from graphopt.errors import UserError

    row: dict[str, Any] = {"exported": "no"}
    with tempfile.TemporaryDirectory() as folder:
        source, model, better = (Path(folder, part) for part in ("source", "model.onnx", "optimized.onnx"))
        try:
            build(name, source)
            row["why"] = "export: "
            done = graphopt.export(source, model)
            errors = [error for check in done.checks for error in check.outputs]
            wrong = [check.failure for check in done.checks if check.failure]
            wrong += [f"{error.name} {error.mismatch}" for error in errors if error.mismatch]
            row |= {
                "exported": "yes" if done.met else "differs",
                "sqnr": min((error.sqnr for error in errors), default=math.nan),
                "checks": len(done.checks),
                "inputs": done.inputs,
                "outputs": done.outputs,
                "nodes": list(done.nodes),
                "why": "; ".join(map(str, wrong[:2] or done.notes)),
            }
            if not done.met:
                return row
            report = graphopt.optimize(model, better)
            row["nodes"].append(report.nodes[1])
            if report.latency is None:  # nothing could be verified, so nothing was done
                row |= {"optimized": "untouched", "why": "; ".join(filter(None, [row["why"], *report.notes]))}
                return row
            verdict = graphopt.validate(better, model, seed=1)
            bugs = [f"{step.spec}: {step.reason}" for step in report.steps if "bug in this pass" in (step.reason or "")]
            row["optimized"] = "yes" if verdict.met and report.met and not bugs else "no"
            row["why"] = "; ".join(filter(None, [row["why"], *verdict.failures, *bugs]))
        except UserError as error:
            row["why"] = f"{row.get('why', '')}{error}"
        except Exception:  # what this benchmark looks for
            row["why"] = f"traceback: {' '.join(traceback.format_exc().splitlines()[-3:])}"
    return row


def child(name: str) -> dict[str, Any]:
    """Take one architecture in a process of its own; a crash of that process is a result too."""
    start = time.perf_counter()
    command = [sys.executable, __file__, "--child", name]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=LIMIT_SECONDS)
    except subprocess.TimeoutExpired:
        return {"name": name, "exported": "no", "why": f"over {LIMIT_SECONDS} s", "seconds": LIMIT_SECONDS}
    lines = done.stdout.splitlines()
    if done.returncode == 0 and lines:
        row = json.loads(lines[-1])
    else:
        row = {"exported": "no", "why": f"crash: {(done.stderr.splitlines() or [f'exit {done.returncode}'])[-1]}"}
    return {"name": name, **row, "seconds": time.perf_counter() - start, "noise": done.stderr[-2000:]}


def line(row: dict[str, Any]) -> str:
    """Write a row of the table."""
    nodes = " -> ".join(map(str, row.get("nodes", [])))
    return (
        f"{row['name']:36} {row['exported']:8} {row.get('sqnr', math.nan):7.1f}  {nodes:20} "
        f"{row.get('optimized', '-'):9} {row['seconds']:7.1f}  {row['why']}"
    )


def main() -> None:
    """Take all architectures, print a row for each and counts."""
    if sys.argv[1:2] == ["--child"]:
        print(json.dumps(take(sys.argv[2])))
        return
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", nargs="+", choices=_FLAT, default=list(_FLAT), metavar="NAME", help="class names")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--out", type=Path, help="write one JSON row per architecture, as they end")
    args = parser.parse_args()
    print(f"{'architecture':36} exported      dB  {'nodes':20} optimized seconds  reason")
    rows = []
    with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
        for row in pool.map(child, args.only):
            rows.append(row)
            print(line(row), flush=True)
            if args.out:
                args.out.write_text("".join(json.dumps(r) + "\n" for r in rows))
    exported = sum(row["exported"] == "yes" for row in rows)
    optimized = sum(row.get("optimized") == "yes" for row in rows)
    print(f"{len(rows)} architectures: {exported} exported and checked, {optimized} optimized with equal outputs")


if __name__ == "__main__":
    main()
