"""A model folder of Hugging Face's transformers: config.json and weights as safetensors."""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from graphopt.errors import UserError

_BATCH = 2
_TOKENS = 16
_PADDING = 3
_FRAMES = 64
_SAMPLES = 16000
_PIXELS = 64
_FIRST_TOKEN = 3
"""Below it tokenizers keep padding, begin and end."""

_SHOWN = 3

Dynamic = dict[str, dict[int, str]]

_AXES: Dynamic = {
    "input_ids": {0: "batch", 1: "sequence"},
    "attention_mask": {0: "batch", 1: "sequence"},
    "token_type_ids": {0: "batch", 1: "sequence"},
    "decoder_input_ids": {0: "batch", 1: "decoder_sequence"},
    "decoder_attention_mask": {0: "batch", 1: "decoder_sequence"},
}
"""Of inputs with more than a batch to leave open."""


def load(folder: Path) -> nn.Module:
    """Load the network that a folder describes, in float32.

    Nothing is downloaded, and no code that comes with a model is run.

    Raises:
        UserError: transformers is not installed, or the folder does not hold a model that it knows.
    """
    try:
        import transformers
    except ImportError:
        raise UserError(f"{folder}: needs transformers; run pip install transformers") from None
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: has no readable config.json ({error}); name a model folder") from None
    names = config.get("architectures") if isinstance(config, dict) else None
    name = names[0] if isinstance(names, list) and names else "AutoModel"
    loader: Any = getattr(transformers, str(name), None)
    kinds = (transformers.PreTrainedModel, transformers.AutoModel)
    is_model = inspect.isclass(loader) and issubclass(loader, kinds)
    if not is_model:
        raise UserError(f"{folder}: its architecture {name} is not one of transformers {transformers.__version__}")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    try:
        module, found = loader.from_pretrained(
            folder,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            dtype=torch.float32,
            output_loading_info=True,
        )
    except Exception as error:  # damaged files raise whatever their readers raise
        raise UserError(f"{folder}: cannot be loaded: {_reason(error)}") from None
    absent = sorted(map(str, (*found["missing_keys"], *found["mismatched_keys"])))
    if absent:
        raise UserError(
            f"{folder}: its weights lack {len(absent)} tensors of {name} or have them in other shapes "
            f"({', '.join(absent[:_SHOWN])}), which would be left random; check 'architectures' in config.json"
        )
    assert isinstance(module, nn.Module)
    return module


def knows(module: object) -> bool:
    """Tell whether a module is a model of transformers, without importing that library."""
    library = sys.modules.get("transformers")
    return library is not None and isinstance(module, library.PreTrainedModel)


def example(module: Any) -> dict[str, Tensor]:
    """Return example inputs for a model of transformers, by the names of forward's parameters.

    What to make follows from the model's main input and its configuration: two samples; 16 tokens, of which the last
    of the second sample are padding; pictures of the size that the configuration tells; a second of sound.

    Raises:
        UserError: the main input is of a kind that is not known here.
    """
    draw = torch.Generator().manual_seed(0)
    config, takes = module.config, inspect.signature(module.forward).parameters
    main = module.main_input_name
    inputs: dict[str, Tensor] = {}
    wanted = [main, *(name for name in ("input_ids", "pixel_values") if name in takes and _is_pair(config))]
    for name in dict.fromkeys(wanted):
        shape = _shape(name, config)
        if name == "input_ids":
            inputs[name] = _tokens(config, shape[1], draw)
            if "attention_mask" in takes:
                inputs["attention_mask"] = torch.ones(shape, dtype=torch.int64)
                inputs["attention_mask"][1, -_PADDING:] = 0
        else:
            inputs[name] = torch.randn(shape, generator=draw).to(module.dtype)
    if getattr(config, "is_encoder_decoder", False) and "decoder_input_ids" in takes:
        inputs["decoder_input_ids"] = _tokens(config, _TOKENS // 2, draw)
    return inputs


def axes(inputs: Mapping[str, Tensor]) -> Dynamic:
    """Return the axes of inputs to leave open: the batch, and of tokens and of sound also the length."""
    found = {}
    for name, tensor in inputs.items():
        sound = {0: "batch", 1: "samples"} if name == "input_values" and tensor.ndim == 2 else {0: "batch"}
        found[name] = {axis: symbol for axis, symbol in _AXES.get(name, sound).items() if axis < tensor.ndim}
    return found


def prepare(module: Any, inputs: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Switch off caches of earlier tokens and return the names of the outputs of one forward pass.

    They are the keys of transformers' outputs, such as `last_hidden_state`; a tuple's parts are numbered, `key.0`.

    Raises:
        UserError: the network does not run on the inputs.
    """
    for part in module.modules():  # the decoder of T5 has a copy of the configuration
        for config in _configs(getattr(part, "config", None)):
            if getattr(config, "use_cache", False):
                config.use_cache = False
    module.config.return_dict = True
    try:
        with torch.no_grad():
            outputs = module.eval()(**inputs)
    except Exception as error:  # whatever the network's own code raises
        raise UserError(
            f"{type(module).__name__}: does not run on the example inputs {', '.join(inputs)}: {_reason(error)}; "
            "give others with --input NAME=2x3x224x224:float32"
        ) from None
    if not isinstance(outputs, Mapping):
        return ()
    return tuple(name for key, value in outputs.items() for name in _named(key, value))


def _reason(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _named(name: str, value: Any) -> Iterator[str]:
    if isinstance(value, Tensor):
        yield name
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield from _named(f"{name}.{key}", part)
    elif isinstance(value, (tuple, list)):
        for number, part in enumerate(value):
            yield from _named(f"{name}.{number}", part)


def _is_pair(config: Any) -> bool:
    """Tell whether text and pictures go through towers of their own, as in CLIP, so that forward wants both."""
    parts = (getattr(config, "text_config", None), getattr(config, "vision_config", None))
    return None not in parts and getattr(config, "image_token_id", None) is None


def _tokens(config: Any, length: int, draw: torch.Generator) -> Tensor:
    size = min(_number(config, ("vocab_size",), 100), 100)
    return torch.randint(min(_FIRST_TOKEN, size - 1), size, (_BATCH, length), generator=draw)


def _shape(name: str, config: Any) -> tuple[int, ...]:
    """Return the shape of an input of two samples.

    Raises:
        UserError: an input of this name is not known here.
    """
    if name == "input_ids":
        return _BATCH, _TOKENS
    if name == "pixel_values":
        height, width = _picture(config)
        picture = (_number(config, ("num_channels", "in_channels", "in_chans"), 3), height, width)
        frames = _number(config, ("num_frames",), 0)
        return (_BATCH, frames, *picture) if frames else (_BATCH, *picture)
    if name == "input_values":
        bins, length = _number(config, ("num_mel_bins",), 0), _number(config, ("max_length",), 0)
        spectrogram = bins and length and not hasattr(config, "conv_kernel")  # Wav2Vec2 and its like take the waveform
        return (_BATCH, length, bins) if spectrogram else (_BATCH, _SAMPLES)
    if name == "input_features":
        frames = 2 * _number(config, ("max_source_positions",), 0)
        rows = _number(config, ("input_feat_per_channel", "feature_projection_input_dim"), 0)
        bins = _number(config, ("num_mel_bins",), 80)
        if rows or not hasattr(config, "max_source_positions"):
            return _BATCH, _FRAMES, rows or bins  # time first
        return _BATCH, bins, frames
    raise UserError(f"no example inputs are known for '{name}'; give --input {name}=2x16:float32 with its shape")


def _picture(config: Any) -> tuple[int, int]:
    """Return height and width: transformers writes one number, two, or a mapping."""
    for part in _configs(config):
        size = getattr(part, "image_size", None)
        if isinstance(size, Mapping) and "height" in size and "width" in size:
            return int(size["height"]), int(size["width"])
        if isinstance(size, (tuple, list)) and size:
            return int(size[0]), int(size[-1])
        if isinstance(size, int):
            return size, size
    return _PIXELS, _PIXELS


def _number(config: Any, names: tuple[str, ...], otherwise: int) -> int:
    """Return the first of several numbers that a configuration or one of its parts holds."""
    for part in _configs(config):
        for name in names:
            found = getattr(part, name, None)
            if isinstance(found, int):
                return found
    return otherwise


def _configs(config: Any) -> Iterator[Any]:
    """Yield a configuration and those of its parts, such as a text and a vision tower."""
    yield config
    for name in getattr(config, "sub_configs", {}):
        part = getattr(config, name, None)
        if part is not None:
            yield from _configs(part)
