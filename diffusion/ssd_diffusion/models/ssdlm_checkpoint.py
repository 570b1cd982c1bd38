"""Reads SSD-LM models: the layout of the published checkpoint `xhan77/ssdlm`, and this project's model folder.

The published layout is a RobertaForMaskedLM folder plus two pickles, `embed_sum_layer.pt` {weight [H, V]} and
`timestep_layer.pt` {weight [H, 1], bias [H]}, whose keys may carry the prefix `module.`. Pickles are opened with
weights_only=True, so they hold tensors or are refused. Knows nothing about engines or decoding.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ssd_diffusion.engine import ModelSpec
from ssd_diffusion.errors import InvalidModel
from ssd_diffusion.models.ssdlm import SsdlmModel
from ssd_diffusion.schedule import uniform_grid
from ssd_diffusion.spec_file import SPEC_FILE, check_files, model_id, one_line, read_spec, write_spec

EMBED_FILE = "embed_sum_layer.pt"
TIME_FILE = "timestep_layer.pt"
DIFFUSION_FILE = "diffusion.safetensors"
_PREFIX = "module."
_HASHED = ("config.json", "model.safetensors", DIFFUSION_FILE)


def load_published(folder: Path) -> SsdlmModel:
    """A checkpoint in the layout of `xhan77/ssdlm`.

    Raises:
        InvalidModel: a file is missing, is no plain tensor file, or has other names or shapes.
    """
    model = SsdlmModel(_backbone(folder))
    h, v = model.hidden, model.vocab
    embed = _pickled(folder / EMBED_FILE, {"weight": (h, v)})
    time = _pickled(folder / TIME_FILE, {"weight": (h, 1), "bias": (h,)})
    _fill(model, embed["weight"].T, time["weight"], time["bias"])
    return model


def load_folder(folder: Path) -> tuple[SsdlmModel, ModelSpec]:
    """A model folder of the SSD-LM family and its spec.

    Raises:
        InvalidModel: a file is missing, damaged or of another family.
    """
    spec = read_spec(folder)
    model = SsdlmModel(_backbone(folder))
    h, v = model.hidden, model.vocab
    try:
        stored = load_file(folder / DIFFUSION_FILE)
    except (OSError, SafetensorError) as error:
        raise InvalidModel(f"{folder / DIFFUSION_FILE} cannot be read ({error}); fetch the model again") from error
    shapes = {"w_diff.weight": (v, h), "w_time.weight": (h, 1), "w_time.bias": (h,)}
    _check(stored, shapes, folder / DIFFUSION_FILE)
    _fill(model, stored["w_diff.weight"], stored["w_time.weight"], stored["w_time.bias"])
    if spec.family != "ssdlm" or spec.hidden != h or spec.vocab > v or spec.max_context > model.max_positions:
        raise InvalidModel(f"{folder / SPEC_FILE} does not describe the weights beside it; fetch the model again")
    check_files(folder, spec, _HASHED)
    return model, spec


def save_folder(
    model: SsdlmModel,
    folder: Path,
    *,
    name: str,
    vocab: int | None = None,
    max_block: int = 25,
    grid: tuple[float, ...] | None = None,
    tokenizer_fingerprint: str = "",
    eos_ids: tuple[int, ...] = (),
) -> ModelSpec:
    """Write weights, configuration and spec as a model folder; tokenizer files and card are the caller's.

    Args:
        model: the network.
        folder: where; made when missing.
        name: model name; the id adds a hash over weights and configuration.
        vocab: true V where the embedding has padded rows.
        max_block: largest B.
        grid: step grid; by default 1,000 uniform steps, as SSD-LM decodes.
        tokenizer_fingerprint: see `ssd_diffusion.tokenizer`.
        eos_ids: tokens that end an answer.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model.backbone.save_pretrained(folder)
    tensors = {"w_diff.weight": model.w_diff, "w_time.weight": model.w_time.weight, "w_time.bias": model.w_time.bias}
    save_file({key: value.detach().contiguous().clone() for key, value in tensors.items()}, folder / DIFFUSION_FILE)
    spec = ModelSpec(
        model_id=model_id(name, folder, _HASHED), family="ssdlm", vocab=vocab or model.vocab, hidden=model.hidden,
        max_block=max_block, max_context=model.max_positions, output_shift=False, grid=grid or uniform_grid(1000),
        tokenizer_fingerprint=tokenizer_fingerprint, eos_ids=eos_ids,
        layers=model.backbone.config.num_hidden_layers, kv_heads=model.backbone.config.num_attention_heads,
        head_dim=model.hidden // model.backbone.config.num_attention_heads,
    )  # fmt: skip
    write_spec(folder, spec)
    return spec


def _backbone(folder: Path) -> Any:
    """The masked-LM backbone with every weight present and finite, its head tied to its embedding."""
    if not (folder / "config.json").is_file():
        raise InvalidModel(f"{folder} has no config.json; name a folder that holds an SSD-LM model")
    try:
        config = transformers.RobertaConfig.from_pretrained(folder, local_files_only=True)
        config.tie_word_embeddings = True
        model, found = transformers.RobertaForMaskedLM.from_pretrained(
            folder, config=config, local_files_only=True, dtype=torch.float32, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError, pickle.UnpicklingError, EOFError) as error:
        raise InvalidModel(f"{folder} is not a RobertaForMaskedLM model ({one_line(error)}); fetch it again") from error
    absent = [*found["missing_keys"], *found["mismatched_keys"]]
    if absent:
        raise InvalidModel(f"{folder} lacks {len(absent)} of the backbone's tensors ({absent[0]}); fetch it again")
    if not all(bool(torch.isfinite(value).all()) for value in model.state_dict().values()):
        raise InvalidModel(f"{folder} holds weights that are not finite numbers; fetch the model again")
    return model


def _pickled(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Named tensors of a pickle, without the prefix of data-parallel training."""
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise InvalidModel(f"{path} is missing; a checkpoint of SSD-LM holds {EMBED_FILE} and {TIME_FILE}") from error
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        raise InvalidModel(f"{path} holds more than plain tensors or is damaged, and was not loaded") from error
    if not isinstance(stored, Mapping):
        raise InvalidModel(f"{path} holds no named tensors; a checkpoint of SSD-LM stores a state dictionary there")
    tensors = {str(key).removeprefix(_PREFIX): value for key, value in stored.items()}
    _check(tensors, shapes, path)
    return tensors


def _check(tensors: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], path: Path) -> None:
    for key, shape in shapes.items():
        value = tensors.get(key)
        if not isinstance(value, Tensor) or tuple(value.shape) != shape:
            size = list(value.shape) if isinstance(value, Tensor) else "missing"
            raise InvalidModel(f"{path}: {key} should be {list(shape)} and is {size}; it belongs to another backbone")
        if not bool(torch.isfinite(value).all()):
            raise InvalidModel(f"{path}: {key} holds numbers that are not finite; fetch the model again")


def _fill(model: SsdlmModel, w_diff: Tensor, weight: Tensor, bias: Tensor) -> None:
    with torch.no_grad():
        model.w_diff.copy_(w_diff)
        model.w_time.weight.copy_(weight)
        model.w_time.bias.copy_(bias)
